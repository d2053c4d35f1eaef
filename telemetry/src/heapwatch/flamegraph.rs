//! A flame graph as one SVG file: no script, no font, nothing fetched.
//!
//! The outermost function is at the top; a box is as wide as the bytes below it. Where it is served,
//! a box leads to the graph of what passes through its function.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::legible;
use super::report::Report;

const WIDTH: f64 = 1_200.0;
const ROW: f64 = 18.0;
const MARGIN: f64 = 12.0;
const HEAD: f64 = 52.0;

/// Boxes narrower than this are not drawn: nobody could read or hit them.
const BOX_WIDTH_MIN: f64 = 1.0;

/// Mean width of a letter.
const LETTER: f64 = 6.4;

/// Deeper steps are left out.
const DEPTH_MAX: usize = 80;

#[derive(Default)]
struct Node {
    bytes: u64,
    below: BTreeMap<String, Self>,
}

/// The stacks of `report` as a graph, headed `title`.
pub fn render(report: &Report, title: &str) -> String {
    let mut root = Node::default();
    for stack in &report.stacks {
        root.bytes += stack.bytes;
        let mut node = &mut root;
        for step in legible::steps(&stack.frames).into_iter().rev().take(DEPTH_MAX) {
            node = node.below.entry(step.name).or_default();
            node.bytes += stack.bytes;
        }
    }
    let depth = depth(&root);
    let height = HEAD + (depth as f64 + 1.0) * ROW + MARGIN;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">
<style>
  svg {{ background: #fff; font: 11px ui-monospace, Menlo, Consolas, monospace; }}
  .title {{ font: 600 15px system-ui, sans-serif; fill: #222; }}
  .note {{ font: 12px system-ui, sans-serif; fill: #777; }}
  rect {{ stroke: #fff; stroke-width: .6; rx: 2px; }}
  a:hover rect {{ stroke: #222; }}
  text {{ fill: #222; pointer-events: none; }}
</style>
<text class="title" x="{MARGIN}" y="24">{}</text>
<text class="note" x="{MARGIN}" y="42">{} in {} stacks; {} build {}</text>
"##,
        escape(title),
        bytes(root.bytes),
        report.stacks.len(),
        report.profile.name(),
        escape(report.build_id.get(..12).unwrap_or(&report.build_id)),
    );
    if root.bytes > 0 {
        let scale = (WIDTH - 2.0 * MARGIN) / root.bytes as f64;
        draw(&mut svg, &root, "all", MARGIN, 0, scale, root.bytes);
    } else {
        let y = HEAD + 14.0;
        push(&mut svg, format_args!(r#"<text x="{MARGIN}" y="{y}">nothing to show</text>"#));
    }
    svg.push_str("</svg>\n");
    svg
}

fn draw(svg: &mut String, node: &Node, name: &str, x: f64, depth: usize, scale: f64, all: u64) {
    let width = node.bytes as f64 * scale;
    if width < BOX_WIDTH_MIN {
        return;
    }
    let y = HEAD + depth as f64 * ROW;
    let share = node.bytes as f64 * 100.0 / all as f64;
    let link = if depth == 0 { String::new() } else { format!("?function={}", encode(name)) };
    push(
        svg,
        format_args!(
            r#"<a href="{}"><title>{} — {}, {share:.1} %</title><rect x="{x:.1}" y="{y}" width="{width:.1}" height="{}" fill="{}"/>"#,
            escape(&link),
            escape(name),
            bytes(node.bytes),
            ROW - 1.0,
            colour(name),
        ),
    );
    let letters = ((width - 8.0) / LETTER) as usize;
    if letters >= 3 {
        let (x, y) = (x + 4.0, y + 12.5);
        let label = escape(&shorten(name, letters));
        push(svg, format_args!(r#"<text x="{x:.1}" y="{y:.1}">{label}</text>"#));
    }
    svg.push_str("</a>\n");
    let mut below: Vec<_> = node.below.iter().collect();
    below.sort_by_key(|(_, node)| std::cmp::Reverse(node.bytes));
    let mut x = x;
    for (name, node) in below {
        draw(svg, node, name, x, depth + 1, scale, all);
        x += node.bytes as f64 * scale;
    }
}

fn push(svg: &mut String, text: std::fmt::Arguments<'_>) {
    svg.write_fmt(text).expect("a String takes everything");
}

fn depth(node: &Node) -> usize {
    node.below.values().map(|node| depth(node) + 1).max().unwrap_or_default()
}

/// One soft colour per crate; our own crates are warm, so that they stand out.
fn colour(name: &str) -> String {
    let home = legible::home(name);
    let own = ["proxy", "control", "telemetry", "ebpf_filter", "ferrule"].contains(&home);
    let seed = home.bytes().fold(7_u32, |hash, byte| hash.wrapping_mul(31) ^ u32::from(byte));
    match home {
        "all" => "#e6e6e6".to_owned(),
        _ if own => format!("hsl({}, 85%, 76%)", 18 + seed % 24),
        "alloc" | "core" | "std" => "hsl(210, 16%, 86%)".to_owned(),
        _ if name.starts_with("0x") => "#eee".to_owned(),
        _ => format!("hsl({}, 45%, 82%)", 80 + seed % 190),
    }
}

/// The end of a name says more than its beginning.
fn shorten(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    let tail: String = name.chars().skip(count - (letters - 1)).collect();
    format!("…{tail}")
}

/// Bytes as people read them.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Text that may stand in markup and in a quoted attribute.
pub fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('"', "&quot;").replace('\'', "&#39;")
}

/// Percent-encodes all but unreserved characters (RFC 3986, section 2.3).
pub fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            push(&mut encoded, format_args!("%{byte:02X}"));
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{report, stack};
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_their_bytes() {
        let svg = render(
            &report(vec![
                stack(300, &["proxy::a", "main"]),
                stack(100, &["proxy::<b & c>", "main"]),
            ]),
            "old & alive",
        );
        let width = |name: &str| {
            let at =
                svg.find(&format!("<title>{name} ")).unwrap_or_else(|| panic!("{name}\n{svg}"));
            let rest = &svg[at..];
            let from = rest.find("width=\"").expect("a box") + 7;
            rest[from..].split('"').next().expect("a width").parse::<f64>().expect("a number")
        };
        assert_eq!(width("main"), 1_176.0);
        assert_eq!(width("proxy::a"), 882.0);
        assert_eq!(width("proxy::&lt;b &amp; c&gt;"), 294.0);
        assert!(svg.contains("old &amp; alive") && svg.contains("400 B in 2 stacks"), "{svg}");
        assert!(svg.contains("?function=proxy%3A%3Aa") && !svg.contains("<script"));
    }

    #[test]
    fn an_empty_graph_says_so() {
        assert!(render(&report(Vec::new()), "x").contains("nothing to show"));
    }

    #[test]
    fn sizes_are_legible() {
        for (n, expected) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
        ] {
            assert_eq!(bytes(n), expected);
        }
        assert_eq!(shorten("proxy::tls::handshake", 10), "…handshake");
    }
}
