//! Where the inventory comes from.
//!
//! A source says what apps there are, one [`Notice`] at a time. It may be slow, silent or wrong;
//! whoever listens keeps the last good version of everything.

pub mod directory;

use std::sync::Arc;

use crate::document::Problem;
use crate::snapshot::{App, AppName};

/// Something that knows which apps there are.
pub trait Source {
    /// The next thing it has to say; waits for it. `None` once it will never say anything again.
    ///
    /// # Cancel safety
    ///
    /// A call that is dropped loses nothing.
    fn next(&mut self) -> impl Future<Output = Option<Notice>>;
}

/// One thing a source says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The app is this now. `origin` is the place that says so: for a directory the file's name.
    App { origin: Arc<str>, app: Box<App> },
    /// No place says anything about the app any more.
    Gone(AppName),
    /// What `origin` says cannot be used; what it said before still holds.
    Bad { origin: Arc<str>, problems: Vec<Problem> },
    /// What was wrong with `origin` no longer is.
    Healed { origin: Arc<str> },
    /// Everything there was to say has been said.
    Synced,
    /// Nothing can be learned just now; everything said before still holds.
    Unavailable(Problem),
}
