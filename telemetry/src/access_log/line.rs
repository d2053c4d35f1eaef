//! One line of the access log.

use std::io::Write as _;
use std::time::Duration;

use crate::record::model::{Exposed, Protocol, Wide};
use crate::sensitive::Field;

/// The longest line: names and numbers, four texts of 256 bytes and three names of the inventory,
/// each byte of which JSON may write as six.
pub(super) const BYTES_MAX: usize = 10 * 1024;

/// Bytes of an app's, instance's or node's name that are written.
const NAME_BYTES_MAX: usize = 128;

/// Bytes of one exposed text, as [`Exposed`] has them at most.
const TEXT_BYTES_MAX: usize = crate::sensitive::EXPOSED_BYTES_MAX;

pub(super) fn request(line: &mut Vec<u8>, wide: &Wide) {
    line.extend_from_slice(b"{\"time\":");
    time(line, wide.began);
    text(line, "request_id", wide.request_id.as_str(), 64);
    name(line, "trace_id");
    hexadecimal(line, wide.trace.0);
    for (name, value) in [("app", &wide.app), ("instance", &wide.instance), ("node", &wide.node)] {
        if let Some(value) = value {
            text(line, name, value, NAME_BYTES_MAX);
        }
    }
    if wide.protocol != Protocol::Tcp {
        text(line, "method", wide.method.as_str(), 16);
    }
    text(line, "protocol", wide.protocol.as_str(), 16);
    name(line, "tls");
    line.extend_from_slice(if wide.tls { b"true" } else { b"false" });
    if let Some(status) = wide.status {
        number(line, "status", status.into());
    }
    if let Some(error) = wide.error {
        text(line, "error", error, 16);
    }
    milliseconds(line, "duration_ms", wide.lasted);
    if let Some(head_after) = wide.head_after {
        milliseconds(line, "head_ms", head_after);
    }
    number(line, "attempts", wide.attempts.into());
    number(line, "request_bytes", wide.request_bytes);
    number(line, "response_bytes", wide.response_bytes);
    if let Some(exposed) = &wide.exposed {
        client(line, exposed);
    }
    line.extend_from_slice(b"}\n");
}

pub(super) fn lost(line: &mut Vec<u8>, lost: u64, now: Duration) {
    line.extend_from_slice(b"{\"time\":");
    time(line, now);
    number(line, "lost", lost);
    line.extend_from_slice(b"}\n");
}

fn client(line: &mut Vec<u8>, exposed: &Exposed) {
    let Exposed { client, host, path, query, user_agent } = exposed;
    if let Some(client) = client {
        name(line, Field::ClientAddress.as_str());
        write!(line, "\"{client}\"").expect("a Vec takes everything");
    }
    for (field, value) in [
        (Field::ServerAddress, host),
        (Field::UrlPath, path),
        (Field::UrlQuery, query),
        (Field::UserAgent, user_agent),
    ] {
        if let Some(value) = value {
            text(line, field.as_str(), value, TEXT_BYTES_MAX);
        }
    }
}

fn text(line: &mut Vec<u8>, name: &str, value: &str, bytes_max: usize) {
    self::name(line, name);
    let value = &value[..value.floor_char_boundary(bytes_max)];
    serde_json::to_writer(line, value).expect("a Vec takes everything and text is JSON");
}

// Numbers by hand: with the formatter a line costs about twice as many instructions, some 9,000
// beside the 64,000 that the node spends on a request in user space.

fn name(line: &mut Vec<u8>, name: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
}

fn number(line: &mut Vec<u8>, name: &str, value: u64) {
    self::name(line, name);
    digits(line, value, 1);
}

/// With three decimals.
fn milliseconds(line: &mut Vec<u8>, name: &str, duration: Duration) {
    self::name(line, name);
    let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    digits(line, micros / 1000, 1);
    line.push(b'.');
    digits(line, micros % 1000, 3);
}

/// In decimal, with zeros in front up to `width` digits, 20 at most.
fn digits(line: &mut Vec<u8>, mut value: u64, width: usize) {
    let mut text = [b'0'; 20];
    let mut at = text.len();
    while value > 0 || text.len() - at < width {
        at -= 1;
        text[at] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    line.extend_from_slice(&text[at..]);
}

/// 32 digits, in quotes.
fn hexadecimal(line: &mut Vec<u8>, value: u128) {
    let mut text = [b'"'; 34];
    for (index, digit) in text[1..33].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(value >> (124 - 4 * index)) as usize & 15];
    }
    line.extend_from_slice(&text);
}

/// A time since the Unix epoch, in quotes: RFC 3339, UTC with milliseconds.
fn time(line: &mut Vec<u8>, since_epoch: Duration) {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil(seconds / 86_400);
    let ms = since_epoch.subsec_millis();
    line.push(b'"');
    for (value, width, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (seconds / 3600 % 24, 2, b':'),
        (seconds / 60 % 60, 2, b':'),
        (seconds % 60, 2, b'.'),
        (ms.into(), 3, b'Z'),
    ] {
        digits(line, value, width);
        line.push(after);
    }
    line.push(b'"');
}

/// The Gregorian date so many days after 1970-01-01.
///
/// Years are counted from March here, so that the leap day is a year's last, and in eras of 400,
/// after which the calendar repeats.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097; // days in 400 years
    const EPOCH: u64 = 719_468; // days from 0000-03-01 to 1970-01-01
    let days = days + EPOCH;
    let (era, day) = (days / ERA, days % ERA);
    // Days of the era without its leap days, by 365: every 4 years one, but 24 in a century.
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // From March on, months repeat 31, 30, 31, 30, 31: 153 days in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @N`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (1_795_175_668, "2026-11-20T11:54:28.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(written(Duration::from_secs(seconds)), format!("\"{text}\""));
        }
        let moment = Duration::from_micros(1_795_175_668_987_654);
        assert_eq!(written(moment), "\"2026-11-20T11:54:28.987Z\"");
    }

    fn written(moment: Duration) -> String {
        let mut line = Vec::new();
        time(&mut line, moment);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn numbers_are_written_as_the_formatter_does() {
        for value in [0, 7, 10, 99, 100, 12_345, 999_999, 1_000_000_007, u64::MAX] {
            let mut line = Vec::new();
            number(&mut line, "n", value);
            milliseconds(&mut line, "ms", Duration::from_micros(value));
            hexadecimal(&mut line, u128::from(value) << 64 | 15);
            let trace = u128::from(value) << 64 | 15;
            let (whole, rest) = (value / 1000, value % 1000);
            let expected = format!(",\"n\":{value},\"ms\":{whole}.{rest:03}\"{trace:032x}\"");
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
    }

    #[test]
    fn every_day_of_eight_centuries_follows_the_one_before() {
        let length = |year: u64, month: u64| match month {
            2 if year.is_multiple_of(4)
                && (!year.is_multiple_of(100) || year.is_multiple_of(400)) =>
            {
                29
            }
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        let mut expected = (1970, 1, 1);
        for days in 0..800 * 366 {
            assert_eq!(civil(days), expected, "day {days}");
            let (year, month, day) = expected;
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (month, day) if day == length(year, month) => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}
