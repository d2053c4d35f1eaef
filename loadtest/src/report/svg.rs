//! Lines over an axis as SVG, with colours that the page's style gives.

use std::fmt::Write as _;

use crate::suite::{Line, Plot};

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;

/// More points than a screen has columns only make the file larger.
const POINTS_MAX: usize = 600;

/// Colours that the style has; more lines share them.
const COLOURS: usize = 8;

/// From numbers to places on the picture.
struct Scale {
    x: (f64, f64),
    y: (f64, f64),
}

/// The picture and its legend; nothing for a plot without points.
pub(super) fn figure(plot: &Plot) -> String {
    let points = || plot.lines.iter().flat_map(|line| &line.points);
    let finite = |value: &f64| value.is_finite();
    let Some(x) = range(points().map(|point| point.0).filter(finite)) else { return String::new() };
    let Some(y) = range(points().map(|point| point.1).filter(finite)) else { return String::new() };
    // From zero, unless that would press everything together at the top.
    let bottom = if y.0 > 0.7 * y.1 { y.0 - (y.1 - y.0).max(0.02 * y.1) } else { y.0.min(0.0) };
    let scale = Scale { x, y: (bottom, if y.1 > bottom { y.1 } else { bottom + 1.0 }) };
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\">",
        super::html::escape(&plot.title)
    );
    axes(&mut svg, plot, &scale);
    for (at, what) in &plot.marks {
        let x = scale.x(*at);
        put(
            &mut svg,
            format_args!(
                "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"><title>{}</title></line>",
                HEIGHT - BOTTOM,
                super::html::escape(what)
            ),
        );
    }
    for (index, line) in plot.lines.iter().enumerate() {
        put(
            &mut svg,
            format_args!(
                "<polyline class=\"c{}\" points=\"{}\"><title>{}</title></polyline>",
                index % COLOURS,
                scale.places(line),
                super::html::escape(&line.name)
            ),
        );
    }
    svg.push_str("</svg>");
    legend(&mut svg, plot);
    svg.push_str("</figure>");
    svg
}

fn axes(svg: &mut String, plot: &Plot, scale: &Scale) {
    for value in ticks(scale.y) {
        let y = scale.y(value);
        put(
            svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                y + 4.0,
                number(value)
            ),
        );
    }
    for value in ticks(scale.x) {
        put(
            svg,
            format_args!(
                "<text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                scale.x(value),
                HEIGHT - BOTTOM + 15.0,
                number(value)
            ),
        );
    }
    put(
        svg,
        format_args!(
            "<text class=\"unit\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <text class=\"unit\" x=\"{:.1}\" y=\"{TOP}\" text-anchor=\"start\" dy=\"4\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 1.0,
            super::html::escape(plot.x),
            LEFT + 4.0,
            super::html::escape(plot.y)
        ),
    );
}

fn legend(svg: &mut String, plot: &Plot) {
    svg.push_str("<p class=\"legend\">");
    for (index, line) in plot.lines.iter().enumerate() {
        let name = super::html::escape(&line.name);
        put(svg, format_args!("<span class=\"k{}\">{name}</span>", index % COLOURS));
    }
    svg.push_str("</p>");
}

// === impl Scale ===

impl Scale {
    fn x(&self, value: f64) -> f64 {
        let (low, high) = self.x;
        let width = if high > low { high - low } else { 1.0 };
        LEFT + (value - low) / width * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let (low, high) = self.y;
        HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }

    /// Of many points, the highest of each column: a peak must not vanish.
    fn places(&self, line: &Line) -> String {
        let each = line.points.len().div_ceil(POINTS_MAX).max(1);
        let mut places = String::new();
        for points in line.points.chunks(each) {
            let highest = points.iter().max_by(|one, other| one.1.total_cmp(&other.1));
            let Some((x, y)) = highest.filter(|point| point.0.is_finite() && point.1.is_finite())
            else {
                continue;
            };
            put(&mut places, format_args!("{:.1},{:.1} ", self.x(*x), self.y(*y)));
        }
        places
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((f64::min(low, value), f64::max(high, value)))
    })
}

/// Between three and six round numbers.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let rough = (high - low) / 4.0;
    if rough <= 0.0 || !rough.is_finite() {
        return vec![low];
    }
    let ten = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * ten).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * ten);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

fn number(value: f64) -> String {
    let size = value.abs();
    let text = match size {
        _ if size >= 1e6 => return format!("{}M", short(value / 1e6)),
        _ if size >= 1e4 => return format!("{}k", short(value / 1e3)),
        _ => short(value),
    };
    if text == "-0" { "0".to_owned() } else { text }
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks((0.0, 10.0)), [0.0, 5.0, 10.0]);
        assert_eq!(ticks((3.1, 4.05)), [3.5, 4.0]);
        assert_eq!(ticks((1.0, 1.0)), [1.0]);
    }

    #[test]
    fn a_peak_survives_thinning() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 0.0)).collect();
        points[5_003].1 = 10.0;
        let svg = figure(&Plot::new("t", "x", "y").line("l", points));
        assert!(svg.contains(&format!(",{TOP:.1} ")), "{svg}");
    }

    #[test]
    fn a_plot_without_points_is_nothing() {
        assert_eq!(figure(&Plot::new("t", "x", "y").line("l", vec![])), "");
    }
}
