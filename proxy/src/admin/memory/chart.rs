//! Small pictures for the page: inline SVG, no script.

use std::fmt::Write as _;

use telemetry::heapwatch::flamegraph::bytes;
use telemetry::heapwatch::{Graph, Total};

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 74.0;
const BOTTOM: f64 = 20.0;
const TOP: f64 = 8.0;

type Series = (&'static str, fn(&Total) -> u64);

/// Drawn in this order; the colours are classes of the page's style.
const SERIES: [Series; 4] = [
    ("retained", |total| total.retained),
    ("resident", |total| total.resident),
    ("active", |total| total.active),
    ("allocated", |total| total.allocated),
];

/// A graph without axes, as wide as the stack's life.
pub(super) fn sparkline(graph: &Graph) -> String {
    const WIDTH: f64 = 180.0;
    const HEIGHT: f64 = 40.0;
    let highest = graph.bytes.iter().copied().max().unwrap_or_default();
    if graph.bytes.len() < 2 || highest == 0 {
        return r#"<svg class="spark" viewBox="0 0 180 40"></svg>"#.to_owned();
    }
    let step = WIDTH / (graph.bytes.len() - 1) as f64;
    let mut line = String::new();
    for (index, bytes) in graph.bytes.iter().enumerate() {
        let y = HEIGHT - 2.0 - (HEIGHT - 5.0) * *bytes as f64 / highest as f64;
        point(&mut line, index as f64 * step, y);
    }
    let seconds = graph.step_ms as f64 * graph.bytes.len() as f64 / 1000.0;
    format!(
        r#"<svg class="spark" viewBox="0 0 180 40" role="img"><title>up to {} in {}</title><polygon points="0,38 {line}180,38"/><polyline points="{line}"/></svg>"#,
        bytes(highest),
        super::page::lasted(seconds),
    )
}

/// The allocator's totals through time, with a scale.
pub(super) fn totals(totals: &[Total]) -> String {
    let (Some(first), Some(last)) = (totals.first(), totals.last()) else {
        return "<p class=\"quiet\">nothing was measured yet</p>".to_owned();
    };
    let highest = totals.iter().flat_map(|total| SERIES.map(|(_, of)| of(total))).max();
    let top = ceiling(highest.unwrap_or_default());
    let milliseconds = last.at_ms.saturating_sub(first.at_ms).max(1) as f64;
    let x = |at_ms: u64| LEFT + (WIDTH - LEFT) * (at_ms - first.at_ms) as f64 / milliseconds;
    let y = |bytes: u64| HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * bytes as f64 / top as f64;
    let mut svg = format!(r#"<svg class="totals" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#);
    for part in 0..=4 {
        let value = top / 4 * part;
        let (at, label) = (y(value), bytes(value));
        let (text_x, text_y) = (LEFT - 8.0, at + 4.0);
        push(
            &mut svg,
            format_args!(
                r#"<line x1="{LEFT}" x2="{WIDTH}" y1="{at:.1}" y2="{at:.1}"/><text x="{text_x}" y="{text_y:.1}" text-anchor="end">{label}</text>"#
            ),
        );
    }
    for (name, of) in SERIES {
        let mut line = String::new();
        // Points closer than a pixel say nothing.
        let stride = (totals.len() / 900).max(1);
        for total in totals.iter().step_by(stride).chain([last]) {
            point(&mut line, x(total.at_ms), y(of(total)));
        }
        push(&mut svg, format_args!(r#"<polyline class="{name}" points="{line}"/>"#));
    }
    let (y, ago) = (HEIGHT - 4.0, super::page::lasted(milliseconds / 1000.0));
    push(
        &mut svg,
        format_args!(
            r#"<text x="{LEFT}" y="{y}">{ago} ago</text><text x="{WIDTH}" y="{y}" text-anchor="end">now</text></svg>"#
        ),
    );
    let key = SERIES.iter().rev().map(|(name, of)| {
        format!(r#"<span class="{name}"><i></i>{name} {}</span>"#, bytes(of(last)))
    });
    format!("{svg}<p class=\"key\">{}</p>", key.collect::<String>())
}

/// A share of a whole as a bar.
pub(super) fn bar(part: u64, whole: u64) -> String {
    let share = if whole == 0 { 0.0 } else { (part as f64 * 100.0 / whole as f64).min(100.0) };
    format!(
        r#"<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none"><rect width="100" height="8"/><rect class="part" width="{share:.1}" height="8"/></svg>"#
    )
}

/// The next number of bytes that can be divided into four round parts.
fn ceiling(highest: u64) -> u64 {
    let unit = highest.max(4).next_power_of_two() / 8;
    highest.max(4).div_ceil(unit.max(1)).next_multiple_of(4) * unit.max(1)
}

fn point(line: &mut String, x: f64, y: f64) {
    push(line, format_args!("{x:.1},{y:.1} "));
}

fn push(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_in_round_numbers_above_what_is_there() {
        for highest in [0, 1, 5, 1000, 27 << 20, (1 << 30) + 1] {
            let top = ceiling(highest);
            assert!(
                top >= highest && top.is_multiple_of(4) && top <= highest.max(4) * 2,
                "{highest}: {top}"
            );
        }
    }

    #[test]
    fn totals_are_lines_within_their_picture() {
        let total = |second: u64| Total {
            at_ms: second * 1000,
            allocated: second << 20,
            resident: second << 21,
            ..Total::default()
        };
        let history: Vec<_> = (0..5_000).map(total).collect();
        let svg = totals(&history);
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert!(svg.len() < 100_000 && svg.contains("1 h 23 min ago"), "{}", svg.len());
        assert!(totals(&[]).contains("nothing"));
    }
}
