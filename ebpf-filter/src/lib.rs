//! The kernel's part of admission.
//!
//! It is an optimisation: without it admission reaches the same verdicts, later. This build loads no
//! program, so every connection is judged in user space after accept, and [`MODE`] says so.

/// How connections are filtered before accept.
pub const MODE: &str = "off";
