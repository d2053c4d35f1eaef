//! What is demanded of everything here that reads strangers' bytes: one function per fuzz target.
//!
//! Each takes any bytes and panics when they make ours misbehave. Compiled twice only: for
//! `proxy/fuzz`, which searches for such bytes, and for tests, which replay what it has kept.
//! Parsers that are not ours (rustls, h2, hyper, httparse) are the other opinion in here, or not
//! in here at all.

mod wire;
mod requests;
mod answers;
mod asks;
mod heads;
mod frames;
mod hello;
mod files;
mod token;

pub use answers::{answer, chunks};
pub use asks::encode;
pub use files::{app_file, config_file};
pub use frames::meter;
pub use heads::{authority, fields};
pub use hello::{client_hello, node_certificate};
pub use requests::{screen, smuggle};
pub use token::trace_token;

/// Calls `show` with `bytes` cut in many ways: at once, into pieces of one size, and in two at
/// every place (in a long input, around its line ends only).
fn cut_in_many_ways(bytes: &[u8], mut show: impl FnMut(&mut dyn Iterator<Item = &[u8]>)) {
    const SHORT: usize = 120;
    const LINES: usize = 24;
    show(&mut std::iter::once(bytes));
    for size in [1, 2, 3, 7, 16, 61] {
        show(&mut bytes.chunks(size));
    }
    let ends = memchr::memchr_iter(b'\n', bytes).take(LINES);
    let around_ends = ends.flat_map(|end| [end.saturating_sub(1), end, end + 1]);
    let everywhere = (0..bytes.len()).take_while(|_| bytes.len() <= SHORT);
    for place in around_ends.chain(everywhere) {
        let (first, second) = bytes.split_at(place);
        show(&mut [first, second].into_iter());
    }
}

/// `name: value` lines as a header map; what is no field is left out.
fn header_map(lines: &[u8]) -> http::HeaderMap {
    let field = |line: &[u8]| {
        let colon = memchr::memchr(b':', line)?;
        let name = http::HeaderName::from_bytes(line[..colon].trim_ascii()).ok()?;
        let value = http::HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
        Some((name, value))
    };
    // More than this is for the check of the count, which does not need thousands.
    lines.split(|byte| *byte == b'\n').filter_map(field).take(300).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// Shows every committed input of a target to it. A panic names the file.
    #[track_caller]
    fn replay(name: &str, target: impl Fn(&[u8])) {
        struct Current(std::path::PathBuf);
        impl Drop for Current {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    eprintln!("while replaying {}", self.0.display());
                }
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let entries = fs::read_dir(&folder).expect("every target has a corpus");
        let mut replayed = 0;
        for entry in entries {
            let current = Current(entry.unwrap().path());
            target(&fs::read(&current.0).unwrap());
            replayed += 1;
        }
        assert!(replayed > 0, "{} is empty", folder.display());
    }

    macro_rules! replays {
        ($($target:ident)*) => { $(
            #[test]
            fn $target() {
                replay(stringify!($target), super::$target);
            }
        )* };
    }

    replays! {
        screen smuggle answer chunks encode authority fields meter client_hello node_certificate app_file
        config_file trace_token
    }

    #[test]
    fn every_target_is_built_and_replayed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let this = include_str!("fuzz.rs");
        for entry in fs::read_dir(folder.join("targets")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            assert!(
                manifest.contains(&format!("name = \"{name}\"")),
                "{name} is not in Cargo.toml"
            );
            assert!(this.contains(&format!(" {name}")), "{name} is not replayed");
        }
    }
}
