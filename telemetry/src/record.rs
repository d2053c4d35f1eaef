//! What is written down about a request while it runs, and handed on when it ends.
//!
//! One pooled, fixed-size buffer per request in flight; flat binary entries, no registry of spans, so
//! nothing can collect under something that never closes.

pub mod model;
