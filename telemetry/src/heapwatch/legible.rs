//! What of a stack is worth reading: not the allocator, not the machinery of collections.

use super::report::{Call, Frame};

/// Functions of the allocator and of the walk, which every stack begins with.
const ALLOCATOR: [&str; 17] = [
    "_rjem_",
    "prof_",
    "imalloc",
    "malloc",
    "calloc",
    "do_rallocx",
    "large_ralloc",
    "arena_",
    "ialloc",
    "je_",
    "__rust_alloc",
    "__rust_realloc",
    "__rustc::__rust",
    "alloc::alloc::",
    "telemetry::stack::",
    "telemetry::heapwatch::hooks::",
    "tikv_jemallocator::",
];

/// Who allocates for the language: what they implement is the allocator's business, too.
const ALLOCATORS: [&str; 3] =
    ["<telemetry::heapwatch::allocator::", "<tikv_jemallocator::", "<alloc::alloc::"];

/// Code that allocates on behalf of whoever called it.
const LIBRARY: [&str; 10] = [
    "alloc::",
    "core::",
    "std::",
    "hashbrown::",
    "bytes::",
    "smallvec::",
    "slab::",
    "__rust",
    "libc.so",
    "?+",
];

/// Allocator frames are looked for among so many calls; one further out is somebody's own function.
const ALLOCATOR_DEPTH: usize = 24;

/// One step of a stack as people read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub name: String,
    pub place: String,
    /// Whether it was compiled into the step outside of it.
    pub inlined: bool,
}

/// The steps of a stack, innermost first, from whoever asked for memory on.
pub fn steps(frames: &[Frame]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for frame in frames {
        if frame.calls.is_empty() {
            steps.push(Step { name: frame.label(), place: String::new(), inlined: false });
            continue;
        }
        let last = frame.calls.len() - 1;
        steps.extend(frame.calls.iter().enumerate().map(|(index, Call { function, place })| {
            Step { name: function.clone(), place: place.clone(), inlined: index < last }
        }));
    }
    let allocator = steps.iter().take(ALLOCATOR_DEPTH).rposition(|step| is_allocator(&step.name));
    steps.drain(..allocator.map_or(0, |index| index + 1));
    steps
}

/// The innermost function that is somebody's own, for a headline.
pub fn headline(steps: &[Step]) -> &str {
    let own = steps.iter().find(|step| !is_library(&step.name) && !step.name.starts_with("0x"));
    own.or_else(|| steps.first()).map_or("unknown", |step| &step.name)
}

/// The crate a function belongs to.
pub fn home(name: &str) -> &str {
    let path = path(name);
    path.split([':', '<', '+']).next().unwrap_or(path)
}

fn is_allocator(name: &str) -> bool {
    ALLOCATOR.iter().any(|prefix| name.starts_with(prefix))
        || ALLOCATORS.iter().any(|prefix| name.starts_with(prefix))
}

fn is_library(name: &str) -> bool {
    LIBRARY.iter().any(|prefix| path(name).starts_with(prefix))
}

/// `<alloc::vec::Vec<T> as Trait>::call` is at home in `alloc`.
fn path(name: &str) -> &str {
    name.trim_start_matches(['<', '&', '*', '(', '['])
        .trim_start_matches("mut ")
        .trim_start_matches("dyn ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(functions: &[&str]) -> Frame {
        let call =
            |function: &&str| Call { function: (*function).to_owned(), place: String::new() };
        Frame {
            offset: "0x10".to_owned(),
            module: String::new(),
            calls: functions.iter().map(call).collect(),
        }
    }

    #[test]
    fn a_stack_begins_where_somebody_asked_for_memory() {
        let frames = [
            frame(&["prof_backtrace"]),
            frame(&["_rjem_malloc"]),
            frame(&[
                "<telemetry::heapwatch::allocator::Allocator as GlobalAlloc>::alloc",
                "__rust_alloc",
            ]),
            frame(&[
                "alloc::alloc::alloc",
                "alloc::raw_vec::finish_grow",
                "alloc::vec::push<u8, alloc::alloc::Global>",
                "proxy::a",
            ]),
            frame(&["<proxy::b::B as Service>::call"]),
            frame(&[]),
        ];
        let steps = steps(&frames);
        let names: Vec<_> = steps.iter().map(|step| (step.name.as_str(), step.inlined)).collect();
        let expected = [
            ("alloc::raw_vec::finish_grow", true),
            ("alloc::vec::push<u8, alloc::alloc::Global>", true),
            ("proxy::a", false),
            ("<proxy::b::B as Service>::call", false),
            ("0x10", false),
        ];
        assert_eq!(names, expected);
        assert_eq!(headline(&steps), "proxy::a");
        assert_eq!(headline(&[]), "unknown");
    }

    #[test]
    fn functions_have_a_home() {
        for (name, expected) in [
            ("proxy::tls::handshake", "proxy"),
            ("<h2::Frame as core::fmt::Debug>::fmt", "h2"),
            ("<&mut dyn tower::Service>::call", "tower"),
            ("main", "main"),
            ("libc.so.6+0x10", "libc.so.6"),
        ] {
            assert_eq!(home(name), expected);
        }
    }
}
