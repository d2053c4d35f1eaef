//! Memory in a terminal.

use telemetry::heapwatch::State;
use telemetry::heapwatch::diff::Change;
use telemetry::heapwatch::flamegraph::bytes;
use telemetry::heapwatch::legible::{headline, steps};
use telemetry::heapwatch::report::{AppShare, Container, Frame, Report, Stack};

use super::super::table::{columns, span};
use crate::admin::memory::{Line, Page};

/// Stacks that are printed; the page has all.
const STACKS_MAX: usize = 15;

/// Changes that are printed.
const CHANGES_MAX: usize = 30;

/// Steps of a stack below its headline.
const STEPS_MAX: usize = 4;

pub(super) fn page(page: &Page) -> String {
    let Page { ledger, memory, heap } = page;
    let explained = page.explained();
    let mut text = format!(
        "memory     {} resident, {} allocated, {} active, {} retained\n",
        bytes(memory.resident),
        bytes(memory.allocated),
        bytes(memory.active),
        bytes(memory.retained),
    );
    text.push_str(&format!(
        "ledger     explained {:.0} % of what is allocated\n",
        explained.percent
    ));
    text.push_str(&format!("heapwatch  {}\n", watch(heap)));
    let rows: Vec<_> = ledger.iter().map(line).collect();
    section(&mut text, columns(["LEDGER", "HOLDS", "HIGHEST", "CAP", "TURNED AWAY"], &rows));
    let share =
        |part: u64| format!("{:.1} %", part as f64 * 100.0 / heap.tables.bytes.max(1) as f64);
    let rows: Vec<_> = heap
        .subsystems
        .iter()
        .map(|s| [s.subsystem.name().to_owned(), bytes(s.bytes), share(s.bytes)])
        .collect();
    if !rows.is_empty() {
        section(&mut text, columns(["SUBSYSTEM", "ALIVE", "SHARE"], &rows));
    }
    let of_app = |s: &AppShare| [heap.app(s.app), bytes(s.bytes), share(s.bytes)];
    let rows: Vec<_> = heap.apps.iter().map(of_app).collect();
    if !rows.is_empty() {
        section(&mut text, columns(["APP", "ALIVE", "SHARE"], &rows));
    }
    let mut rows: Vec<_> =
        heap.containers.iter().filter(|c| c.state > State::Steady).map(container).collect();
    rows.extend(heap.stacks.iter().take(STACKS_MAX).map(stack));
    if !rows.is_empty() {
        let header = ["OLD AND ALIVE", "STATE", "PER REQUEST", "PER HOUR", "TO THE LIMIT", "WHERE"];
        section(&mut text, columns(header, &rows));
    }
    for suspect in heap.stacks.iter().filter(|stack| stack.state >= State::Probable) {
        let title = format!("{}, {}:", suspect.state.name(), bytes(suspect.bytes));
        section(&mut text, backtrace(title, &suspect.frames));
    }
    for suspect in heap.containers.iter().filter(|found| found.state >= State::Growing) {
        let title = format!("unbounded container, {}:", bytes(suspect.bytes));
        section(&mut text, backtrace(title, &suspect.frames));
    }
    text
}

pub(super) fn changes(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing changed\n".to_owned();
    }
    let row = |change: &Change| {
        let growth = change.growth();
        let sign = if growth < 0 { "-" } else { "+" };
        let size = bytes(u64::try_from(growth.unsigned_abs()).unwrap_or(u64::MAX));
        [
            format!("{sign}{size}"),
            bytes(change.before),
            bytes(change.after),
            change.headline.clone(),
        ]
    };
    let rows: Vec<_> = changes.iter().take(CHANGES_MAX).map(row).collect();
    let mut text = columns(["CHANGE", "BEFORE", "AFTER", "WHERE"], &rows);
    if changes.len() > CHANGES_MAX {
        text.push_str(&format!("\n{} more\n", changes.len() - CHANGES_MAX));
    }
    for change in changes.iter().filter(|change| change.growth() > 0).take(3) {
        section(&mut text, format!("{}:\n", change.headline));
        for step in change.steps.iter().take(STEPS_MAX * 5) {
            text.push_str(&format!("  {step}\n"));
        }
    }
    text
}

fn section(text: &mut String, more: String) {
    text.push('\n');
    text.push_str(&more);
}

fn watch(heap: &Report) -> String {
    let suspects = &heap.suspects;
    format!(
        "{} for {}, {} leaks, {} probable, {} growing",
        heap.mode.name(),
        span(heap.uptime_ms as f64 / 1000.0),
        suspects.leak,
        suspects.probable,
        suspects.growing,
    )
}

fn line(line: &Line) -> [String; 5] {
    let Line { owner, unit, current, high, cap, drops, bytes: _, place: _ } = line;
    let amount = |n: u64| if unit == "bytes" { bytes(n) } else { n.to_string() };
    let positive = |n: i64| amount(u64::try_from(n).unwrap_or_default());
    let cap = if *cap == u64::MAX { "-".to_owned() } else { amount(*cap) };
    [owner.clone(), positive(*current), positive(*high), cap, drops.to_string()]
}

fn stack(stack: &Stack) -> [String; 6] {
    let grows = stack.state >= State::Growing;
    [
        bytes(stack.bytes),
        stack.state.name().to_owned(),
        per_request(stack.bytes_per_request),
        if grows { bytes(stack.bytes_per_hour.max(0.0) as u64) } else { "-".to_owned() },
        stack.limit_in_ms.map_or_else(|| "-".to_owned(), |ms| span(ms as f64 / 1000.0)),
        place(&stack.frames),
    ]
}

fn container(container: &Container) -> [String; 6] {
    [
        bytes(container.bytes),
        container.state.name().to_owned(),
        per_request(container.bytes_per_request),
        "-".to_owned(),
        "-".to_owned(),
        format!("{} (one block)", place(&container.frames)),
    ]
}

fn per_request(bytes: Option<f64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{bytes:.1} B"))
}

fn place(frames: &[Frame]) -> String {
    headline(&steps(frames)).to_owned()
}

fn backtrace(title: String, frames: &[Frame]) -> String {
    let steps = steps(frames);
    steps.iter().fold(title + "\n", |text, step| {
        let place = if step.place.is_empty() { String::new() } else { format!("  {}", step.place) };
        text + "  " + &step.name + &place + "\n"
    })
}

#[cfg(test)]
mod tests {
    use telemetry::heapwatch::Query;

    use super::*;
    use crate::admin::memory::example;
    use crate::admin::status::Memory;

    #[test]
    fn a_leak_is_printed_with_its_stack() {
        let ledger = vec![Line {
            owner: "buffers".to_owned(),
            unit: "bytes".to_owned(),
            current: 1 << 20,
            bytes: 1 << 20,
            high: 2 << 20,
            cap: u64::MAX,
            drops: 0,
            place: "heap".to_owned(),
        }];
        let memory = Memory { resident: 30 << 20, ..Memory::default() };
        let told = Page { ledger, memory, heap: example(&Query::default()) };
        let text = page(&told);
        for expected in [
            "memory     30.0 MiB resident",
            "heapwatch  hooks for",
            "buffers  1.0 MiB  2.0 MiB  -    0",
            "4.0 MiB        growing  27.0 B       -         -             proxy::trace::",
            "6.0 MiB        leak     200.2 B      1.0 MiB   2 h 0 min     proxy::trace::",
            "  alloc::vec::Vec<T>::push  alloc/src/vec/mod.rs:9\n",
            "unbounded container, 4.0 MiB:",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn changes_have_a_sign() {
        let change = |before, after| Change {
            before,
            after,
            headline: "proxy::a".to_owned(),
            steps: vec!["proxy::a".to_owned(), "main".to_owned()],
        };
        let text = changes(&[change(0, 2048), change(1024, 0)]);
        let expected = "\
CHANGE    BEFORE   AFTER    WHERE
+2.0 KiB  0 B      2.0 KiB  proxy::a
-1.0 KiB  1.0 KiB  0 B      proxy::a

proxy::a:
  proxy::a
  main
";
        assert_eq!(text, expected);
        assert_eq!(changes(&[]), "nothing changed\n");
    }
}
