//! How an error is written: what happened, then what caused it, on one line.

use std::error::Error;

/// `error` and everything that caused it, as their `Display`s say it. Never a backtrace.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
