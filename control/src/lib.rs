//! What the data plane should do: inventory model, sources, SQLite catalog. Never in the request path.
//!
//! A [`source`] reads app files ([`app_file`]) and says what changed; [`publish`] lets only those
//! through that contradict nobody; [`inventory`] applies them and has the [`catalog`] keep them for
//! the next start. The data plane knows [`snapshot`] only, and [`document`] for its own file.

pub mod snapshot;
pub mod names;
pub mod document;
pub mod app_file;
pub mod source;
pub mod publish;
pub mod catalog;
pub mod inventory;
