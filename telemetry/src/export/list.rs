//! Lists of `key=value` in environment variables: W3C Baggage without properties.

/// The pairs of `text`, their values decoded; none when one of them is not a pair.
pub(super) fn parse(text: &str) -> Option<Vec<(String, String)>> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (key, value) = entry.split_once('=')?;
            let (key, value) = (decode(key.trim())?, decode(value.trim())?);
            (!key.is_empty()).then_some((key, value))
        })
        .collect()
}

fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
                u8::try_from(high? * 16 + low?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<&[(&str, &str)]>) {
        let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(parse(text), expected.map(own), "{text:?}");
    }

    #[test]
    fn lists_are_read_as_the_specification_writes_them() {
        check("", Some(&[]));
        check("a=1", Some(&[("a", "1")]));
        check(" a = 1 , b = ,", Some(&[("a", "1"), ("b", "")]));
        check("a=b=c", Some(&[("a", "b=c")]));
        check("authorization=Basic%20eA%3D%3D", Some(&[("authorization", "Basic eA==")]));
        check("key=%c3%bc", Some(&[("key", "\u{fc}")]));
        for text in ["a", "=1", "a=%", "a=%2", "a=%zz", "a=%ff", "a=%+1"] {
            check(text, None);
        }
    }
}
