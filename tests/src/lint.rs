//! Finds what would write an error by its `Debug`: clippy has no lint for it.
//!
//! A `Debug` of an error may symbolise a backtrace, which takes 100 MB and more, and it spells out
//! what its type holds. So errors are written by `Display`, with `telemetry::error::chain` where the
//! causes matter. This looks at the text of macros, not at types, so it goes by names: whatever is
//! called `error`, `err`, `e`, `failure`, `source`, `cause`, or ends with `_error` or `_err`.

/// One place that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Counted from 1.
    pub line: usize,
    /// What was found, as written.
    pub what: String,
}

/// Macros whose arguments are written somewhere.
const MACROS: [&str; 22] = [
    "error",
    "warn",
    "info",
    "debug",
    "trace",
    "event",
    "span",
    "error_span",
    "warn_span",
    "info_span",
    "debug_span",
    "trace_span",
    "format",
    "format_args",
    "write",
    "writeln",
    "print",
    "println",
    "eprint",
    "eprintln",
    "panic",
    "unreachable",
];

const NAMES: [&str; 6] = ["error", "err", "e", "failure", "source", "cause"];

/// What captures backtraces whatever the environment says, or keeps one.
const TYPES: [&str; 4] = ["Backtrace", "anyhow", "eyre", "force_capture"];

/// Everything in `source`, a file of ours, that writes an error by its `Debug` or keeps a backtrace.
/// Tests at the end of the file are left out: what they print is for whoever wrote them.
pub fn findings(source: &str) -> Vec<Finding> {
    let code = without_comments(without_tests(source));
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let mut findings = Vec::new();
    for (at, arguments) in macros(&code) {
        for what in debug_forms(arguments) {
            findings.push(Finding { line: line(at), what });
        }
    }
    for word in TYPES {
        for (at, _) in code.match_indices(word).filter(|(at, _)| is_word(&code, *at, word.len())) {
            findings.push(Finding { line: line(at), what: word.to_owned() });
        }
    }
    findings.sort_by_key(|finding| finding.line);
    findings
}

fn without_tests(source: &str) -> &str {
    let tests = source.match_indices("#[cfg(test)]").find(|(at, _)| {
        let after = source[at + "#[cfg(test)]".len()..].trim_start();
        after.starts_with("mod ") || after.starts_with("pub mod ")
    });
    tests.map_or(source, |(at, _)| &source[..at])
}

/// Line comments become spaces, so that places stay. A `//` within a string ends the line for us too,
/// which can hide something only behind it on that very line.
fn without_comments(source: &str) -> String {
    let lines = source.split_inclusive('\n').map(|line| match line.find("//") {
        Some(at) if !line[..at].ends_with(':') => {
            let end = if line.ends_with('\n') { "\n" } else { "" };
            format!("{}{end}", &line[..at])
        }
        _ => line.to_owned(),
    });
    lines.collect()
}

/// The arguments of every call of a macro, with the place of its name.
fn macros(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for name in MACROS {
        for (at, _) in code.match_indices(name) {
            let after = &code[at + name.len()..];
            let open = ["!(", "![", "!{"].iter().any(|open| after.starts_with(open));
            if open && is_word(code, at, name.len()) {
                let start = at + name.len() + 2;
                found.push((at, &code[start..start + end(&code[start..])]));
            }
        }
    }
    found
}

/// Where the bracket closes that `code` is in.
fn end(code: &str) -> usize {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, character) in code.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => return at,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

fn debug_forms(arguments: &str) -> Vec<String> {
    let parts = split(arguments);
    let mut found = Vec::new();
    let mut has_bare = false;
    for part in &parts {
        let part = part.trim();
        // `?error`, `error = ?error`: the sigil stands at the beginning of a value.
        let value = part.split_once('=').map_or(part, |(_, value)| value.trim());
        if let Some(expression) = value.strip_prefix('?')
            && is_error(expression)
        {
            found.push(value.to_owned());
        }
        if part.starts_with('"') {
            for form in braces(part) {
                let Some((name, format)) = form.split_once(':') else { continue };
                if !format.contains('?') {
                    continue;
                }
                if name.is_empty() || name.bytes().all(|byte| byte.is_ascii_digit()) {
                    has_bare = true;
                } else if is_error(name) {
                    found.push(format!("{{{form}}}"));
                }
            }
        }
    }
    if has_bare {
        let text = parts.iter().position(|part| part.trim().starts_with('"')).unwrap_or(0);
        let errors = parts[text + 1..].iter().map(|part| part.trim());
        let value = |part: &str| part.split_once('=').map_or(part, |(_, value)| value).to_owned();
        found.extend(
            errors.filter(|part| is_error(&value(part))).map(|part| format!("{{:?}} of {part}")),
        );
    }
    found
}

/// At the commas that are in no bracket and no string.
fn split(arguments: &str) -> Vec<&str> {
    let (mut parts, mut start, mut at) = (Vec::new(), 0, 0);
    while at < arguments.len() {
        let rest = &arguments[at..];
        let character = rest.chars().next().unwrap_or(' ');
        match character {
            ',' => {
                parts.push(&arguments[start..at]);
                at += 1;
                start = at;
            }
            '(' | '[' | '{' => at = (at + 1 + end(&rest[1..]) + 1).min(arguments.len()),
            '"' => at += string(rest),
            _ => at += character.len_utf8(),
        }
    }
    parts.push(&arguments[start..]);
    parts
}

/// Bytes of the string literal that `code` begins with.
fn string(code: &str) -> usize {
    let mut escaped = false;
    for (at, character) in code.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// What stands in the braces of a format string.
fn braces(text: &str) -> Vec<&str> {
    let text = text.trim_matches('"');
    let opens = text.match_indices('{').filter(|(at, _)| !text[..*at].ends_with('{'));
    opens.filter_map(|(at, _)| text[at + 1..].split_once('}').map(|(form, _)| form)).collect()
}

fn is_error(expression: &str) -> bool {
    let expression = expression.trim().trim_start_matches(['&', '*']);
    let expression = expression.trim_end_matches("()");
    let last = expression.rsplit(['.', ':']).next().unwrap_or(expression).trim();
    NAMES.contains(&last)
        || ["_error", "_err", "_failure"].iter().any(|ending| last.ends_with(ending))
}

fn is_word(code: &str, at: usize, length: usize) -> bool {
    let of_word = |character: char| character.is_alphanumeric() || character == '_';
    !code[..at].ends_with(of_word) && !code[at + length..].starts_with(of_word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_was_planted_is_found() {
        let planted = r#"
fn planted(error: &Error) {
    tracing::error!("git token: {:?}", error);
    tracing::warn!(?err, "first");
    tracing::info!(name, error = ?self.error, "second");
    warn!(peer = %peer, "third: {error:?}");
    let text = format!("{failure:#?}");
    let text = format!(
        "{} and {:?}",
        name,
        answer.unwrap_err(),
    );
    write!(f, "{0:?}", &self.source)?;
    panic!("{connect_error:?}");
    let backtrace = std::backtrace::Backtrace::force_capture();
    use anyhow::Context;
}
"#;
        let found: Vec<_> =
            findings(planted).into_iter().map(|finding| (finding.line, finding.what)).collect();
        let expected = [
            (3, "{:?} of error"),
            (4, "?err"),
            (5, "?self.error"),
            (6, "{error:?}"),
            (7, "{failure:#?}"),
            (8, "{:?} of answer.unwrap_err()"),
            (13, "{0:?}"),
            (14, "{connect_error:?}"),
            (15, "Backtrace"),
            (15, "force_capture"),
            (16, "anyhow"),
        ];
        let expected: Vec<_> = expected
            .map(|(line, what)| (line, what.replace("{0:?}", "{:?} of &self.source")))
            .into();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_right_is_not_found() {
        let right = r#"
// tracing::error!("{error:?}") would be wrong
tracing::error!(%error, error = %source, chain = chain(&error), "it broke: {error}");
let status = connect(address)?;
tracing::info!(?level, "{phase:?} {:?} took {:?}", state, error_count, other);
let text = format!("{name:?} {{error:?}}");
if let Err(error) = f() { return; }

#[cfg(test)]
mod tests {
    fn told() { panic!("{error:?}"); }
}
"#;
        assert_eq!(findings(right), []);
    }
}
