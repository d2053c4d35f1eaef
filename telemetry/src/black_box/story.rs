//! A report as a person reads it.

use std::fmt::Write as _;

use super::record::Level;
use super::report::{Frame, Life, Point, Report, Stack};
use super::verdict::Verdict;

/// Columns of the curve of memory.
const COLUMNS: usize = 50;

const FRAMES_SHOWN: usize = 16;
const STACKS_SHOWN: usize = 3;
const WARNINGS_SHOWN: usize = 10;
const REQUESTS_SHOWN: usize = 5;

/// The report as text. `names` says what a frame is called, if it knows; otherwise it is shown as
/// `file+0xaddress`, which `addr2line` takes.
pub fn story(report: &Report, names: &dyn Fn(&Frame) -> Option<String>) -> String {
    let mut text = format!("{}: {}\n", report.verdict.words(), report.why);
    if let Some(life) = &report.life {
        tell(&mut text, report.verdict, life, names).expect("a String takes everything");
    }
    text
}

fn tell(
    text: &mut String,
    verdict: Verdict,
    life: &Life,
    names: &dyn Fn(&Frame) -> Option<String>,
) -> std::fmt::Result {
    let Life { node, version, pid, build_id, started, last_seen, uptime_seconds, .. } = life;
    writeln!(text)?;
    write!(text, "process   node {node}, version {version}, pid {pid}")?;
    let build_id = build_id.get(..12).unwrap_or(build_id);
    writeln!(
        text,
        "{}",
        if build_id.is_empty() { String::new() } else { format!(", build {build_id}") }
    )?;
    writeln!(text, "lived     from {started} to {last_seen}, {}", span(*uptime_seconds))?;
    let memory = &life.memory;
    let (used, most) = (mebibytes(memory.used), mebibytes(memory.used_max));
    let (limit, source) = (mebibytes(memory.limit), memory.limit_source);
    writeln!(text, "memory    {used} used at the end, at most {most}, of {limit} ({source})")?;
    let (resident, highest) = (mebibytes(memory.resident), mebibytes(memory.resident_max));
    write!(text, "          {resident} resident at the end, {highest} at most since the start")?;
    match memory.cgroup_peak {
        Some(peak) => writeln!(text, ", {} peak of the cgroup", mebibytes(peak))?,
        None => writeln!(text)?,
    }
    if !life.last_seconds.is_empty() {
        let curve = curve(&life.last_seconds, memory.limit);
        writeln!(text, "          last 10 s |{curve}| full height is the limit")?;
    }
    let Life { connections, requests_in_flight, open_descriptors, threads, .. } = life;
    writeln!(
        text,
        "traffic   {connections} connections, {requests_in_flight} requests in flight, \
         {open_descriptors} descriptors, {threads} threads"
    )?;

    if !life.allocated_by.is_empty() {
        writeln!(text, "\nallocated while memory was short, in the last 10 s")?;
        for stack in life.allocated_by.iter().take(STACKS_SHOWN) {
            let Stack { bytes, count, thread, percent, milliseconds, .. } = stack;
            writeln!(
                text,
                "  {} in {count} records, by thread {thread}, last {milliseconds} ms before the end, \
                 at up to {percent} % of the limit",
                mebibytes(*bytes)
            )?;
            frames(text, &stack.frames, names)?;
        }
    }
    if let Some(panic) = &life.panic {
        let contained = if verdict == Verdict::Panic { "" } else { ", which was contained" };
        let of =
            if life.panics > 1 { format!(", the last of {}", life.panics) } else { String::new() };
        writeln!(text, "\npanic{of} at {} in thread {}{contained}", panic.at, panic.thread)?;
        writeln!(text, "  {}", panic.location)?;
        frames(text, &panic.frames, names)?;
    }
    if !life.old_stacks.is_empty() {
        writeln!(text, "\nold memory, by stack")?;
        for stack in life.old_stacks.iter().take(STACKS_SHOWN) {
            let age = span(stack.milliseconds as f64 / 1000.0);
            writeln!(
                text,
                "  {} in {} objects, up to {age} old",
                mebibytes(stack.bytes),
                stack.count
            )?;
            frames(text, &stack.frames, names)?;
        }
    }
    if !life.requests.is_empty() {
        writeln!(text, "\nrequests that held the most")?;
        for request in life.requests.iter().take(REQUESTS_SHOWN) {
            let held = mebibytes(request.bytes);
            let age = span(request.age_ms as f64 / 1000.0);
            writeln!(
                text,
                "  {held}  {} of {}, {} for {age}",
                request.id, request.app, request.state
            )?;
        }
    }
    if !life.warnings.is_empty() {
        writeln!(text, "\nlast warnings")?;
        let skipped = life.warnings.len().saturating_sub(WARNINGS_SHOWN);
        for warning in life.warnings.iter().skip(skipped) {
            let before = warning.before_end_ms as f64 / 1000.0;
            let level = match warning.level {
                Level::Info => "INFO ",
                Level::Warn => "WARN ",
                Level::Error => "ERROR",
            };
            writeln!(text, "  -{before:.3} s {level} {}", warning.text)?;
        }
    }
    Ok(())
}

fn frames(
    text: &mut String,
    frames: &[Frame],
    names: &dyn Fn(&Frame) -> Option<String>,
) -> std::fmt::Result {
    for frame in frames.iter().take(FRAMES_SHOWN) {
        match names(frame) {
            Some(name) => writeln!(text, "      {name}")?,
            None => writeln!(text, "      {frame}")?,
        }
    }
    Ok(())
}

/// The highest of each column as a block, of which a full one is the limit, or the highest of all
/// where there is no limit.
fn curve(points: &[Point], limit: u64) -> String {
    const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let full =
        if limit > 0 { limit } else { points.iter().map(|point| point.used).max().unwrap_or(0) };
    let mut columns: [Option<u64>; COLUMNS] = [None; COLUMNS];
    for point in points {
        let column = (point.before_end_ms as usize * COLUMNS / 10_000).min(COLUMNS - 1);
        let column = &mut columns[COLUMNS - 1 - column];
        *column = (*column).max(Some(point.used));
    }
    let block = |used: Option<u64>| match (used, full) {
        (None, _) => ' ',
        (Some(_), 0) => BLOCKS[1],
        // What was seen is at least a line, so that it can be told from what was not.
        (Some(used), full) => BLOCKS[used.saturating_mul(8).div_ceil(full).clamp(1, 8) as usize],
    };
    columns.into_iter().map(block).collect()
}

pub(super) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_is_as_high_as_memory_was_full() {
        let point = |before_end_ms, used| Point { before_end_ms, used, ..Point::default() };
        let points =
            [point(9_900, 0), point(400, 50), point(200, 100), point(100, 400), point(0, 90)];
        let curve = curve(&points, 100);
        assert_eq!(curve.chars().count(), COLUMNS);
        assert!(curve.starts_with("▁ "), "{curve}");
        assert!(curve.ends_with("▄██"), "{curve}");
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in
            [(0.25, "0.2 s"), (61.0, "1 min 1 s"), (7_260.0, "2 h 1 min"), (180_000.0, "2 d 2 h")]
        {
            assert_eq!(span(seconds), text);
        }
    }
}
