//! What can go wrong between ferrule and the kernel. Each error names what is missing, so that
//! whoever forced a mode can give it or take the mode back.

use std::io;
use std::path::PathBuf;

/// Why the filter or steering could not be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The process may not.
    #[error("{what} needs {missing}")]
    Capability { what: &'static str, missing: String },

    /// The kernel, or its driver for this interface, cannot.
    #[error("{what} on {place}: {reason}")]
    Kernel { what: &'static str, place: String, reason: &'static str, source: io::Error },

    /// The configuration lacks what the mode needs.
    #[error("filter.mode \"{mode}\" needs {needs}")]
    Configuration { mode: &'static str, needs: &'static str },

    /// There is no such interface, or it has no Ethernet frames.
    #[error("interface {interface}: {reason}")]
    Interface { interface: String, reason: String },

    /// The directory of the pins cannot be used.
    #[error("{}: {reason}", path.display())]
    Pins { path: PathBuf, reason: &'static str, source: io::Error },

    /// The object does not load.
    #[error("the kernel refuses {what}")]
    Load { what: &'static str, source: Box<dyn std::error::Error + Send + Sync> },

    /// Another process took over the maps.
    #[error("another process has taken over the filter")]
    Superseded,

    /// A map has no room.
    #[error("map {map} is full ({capacity} entries)")]
    Full { map: &'static str, capacity: u32 },

    /// A map cannot be read or written.
    #[error("map {map} cannot be {operation}")]
    Map {
        map: &'static str,
        operation: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// An error and what caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
