//! Columns for people: as wide as their widest cell, two spaces apart.

/// Lines under `header`, without trailing spaces.
pub(super) fn columns<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(width);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(self::width(cell));
        }
    }
    let mut text = String::new();
    line(&mut text, &header, &widths);
    for row in rows {
        line(&mut text, &row.each_ref().map(String::as_str), &widths);
    }
    text
}

/// `count` things, in English.
pub(crate) fn counted(count: u64, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}

/// A list in a cell; a dash when it is empty, so that columns stay columns.
pub(super) fn joined<T: ToString>(values: &[T]) -> String {
    match values {
        [] => "-".to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

/// A time span in its two largest units.
pub(crate) fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let minutes = seconds as u64 / 60;
    match (minutes / 1_440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min {} s", seconds as u64 % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

fn line(text: &mut String, cells: &[&str], widths: &[usize]) {
    let start = text.len();
    for (cell, column) in cells.iter().zip(widths) {
        if text.len() > start {
            text.push_str("  ");
        }
        text.push_str(cell);
        text.extend(std::iter::repeat_n(' ', column.saturating_sub(width(cell))));
    }
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

fn width(cell: &str) -> usize {
    cell.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned);
        let rows = [row(["a", "é", "last"]), row(["longer", "", ""])];
        assert_eq!(
            columns(["NAME", "X", "Y"], &rows),
            "NAME    X  Y\n\
             a       é  last\n\
             longer\n"
        );
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [counted(0, "app"), counted(1, "app"), counted(2, "app")],
            ["0 apps", "1 app", "2 apps"]
        );
    }

    #[test]
    fn a_span_has_its_two_largest_units() {
        let check = |seconds, expected| assert_eq!(span(seconds), expected);
        check(0.0, "0.0 s");
        check(59.94, "59.9 s");
        check(61.0, "1 min 1 s");
        check(3_661.0, "1 h 1 min");
        check(90_061.0, "1 d 1 h");
    }
}
