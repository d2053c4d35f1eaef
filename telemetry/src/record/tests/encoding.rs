//! What is written is read back; what was never written reads as nothing.

use proptest::prelude::*;

use super::*;
use crate::record::decode::decode;
use crate::record::log::Log;
use crate::site;

fn value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        any::<bool>().prop_map(Owned::Bool),
        any::<u64>().prop_map(Owned::Unsigned),
        any::<i64>().prop_map(Owned::Signed),
        (-1e9..1e9).prop_map(Owned::Float),
        Just(Owned::Static("static")),
        ".{0,80}".prop_map(Owned::Catalogued),
        ".{0,80}".prop_map(Owned::Exposed),
    ]
}

#[derive(Debug, Clone)]
enum Owned {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Static(&'static str),
    Catalogued(String),
    Exposed(String),
}

impl Owned {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Unsigned(value) => Value::Unsigned(*value),
            Self::Signed(value) => Value::Signed(*value),
            Self::Float(value) => Value::Float(*value),
            Self::Static(text) => Value::Static(text),
            Self::Catalogued(text) => Value::Catalogued(text),
            Self::Exposed(text) => Value::Exposed(text),
        }
    }
}

fn cut(value: Value<'_>) -> Value<'_> {
    let cut = |text| {
        let text: &str = text;
        &text[..text.floor_char_boundary(256)]
    };
    match value {
        Value::Catalogued(text) => Value::Catalogued(cut(text)),
        Value::Exposed(text) => Value::Exposed(cut(text)),
        other => other,
    }
}

proptest! {
    #[test]
    fn values_are_read_back(values in prop::collection::vec(value(), 4), at: u64) {
        let values: Vec<_> = values.iter().map(Owned::value).collect();
        let mut log = Log::default();
        log.begin(Some(vec![0xff; 4096].into()), 100);
        log.event(site!("event", a, b, c, d), at, &values);
        let pairs: Vec<_> = ["a", "b", "c", "d"].into_iter().zip(values.iter().copied()).collect();
        log.library("name", "target", Level::TRACE, at, &pairs);
        let entries = decode(log.entries(), SpanId(1));
        prop_assert_eq!(entries.len(), 2);
        for entry in &entries {
            let Entry::Event(event) = entry else { panic!("an event: {entry:?}") };
            let expected: Vec<_> = pairs.iter().map(|(key, value)| (*key, cut(*value))).collect();
            prop_assert_eq!(&event.fields, &expected);
            prop_assert_eq!(event.at, Duration::from_nanos(at));
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        decode(&bytes, SpanId(1));
    }

    /// Bytes that look like entries reach deeper than random ones do.
    #[test]
    fn no_damage_makes_the_reader_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        end in any::<prop::sample::Index>(),
    ) {
        let mut log = Log::default();
        log.begin(Some(vec![0; 4096].into()), 100);
        let index = log.next_span();
        let place = log.span(site!("span", a), index, 0, 0, Default::default(), &[1u64.into()]);
        log.enter(index, place.expect("room"));
        log.event(site!("event", a), 5, &["text".into()]);
        log.field("late", Value::Exposed("text"));
        log.library("name", "target", Level::INFO, 6, &[("key", Value::Catalogued("text"))]);
        let mut bytes = log.entries().to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        decode(&bytes, SpanId(1));
    }
}
