//! Levels by name, in tokens, rules and listings.

use serde::{Deserialize as _, Deserializer, Serializer};

use super::Level;

/// What a level is called.
pub fn name(level: Level) -> &'static str {
    match level {
        Level::Wide => "wide",
        Level::Normal => "normal",
        Level::Verbose => "verbose",
    }
}

/// `normal` or `verbose`: nobody can ask for less than what is written anyway.
pub fn parse(name: &str) -> Option<Level> {
    [Level::Normal, Level::Verbose].into_iter().find(|level| self::name(*level) == name)
}

pub(super) fn serialize<S: Serializer>(level: &Level, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(name(*level))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Level, D::Error> {
    let text = String::deserialize(from)?;
    parse(&text).ok_or_else(|| serde::de::Error::custom("a level is normal or verbose"))
}
