//! Signed tokens: `v1.<key id>.<payload>.<mac>`, in a request's `ferrule-trace` field.
//!
//! The payload is JSON in base64url without padding, the MAC is HMAC-SHA256 over everything before
//! its dot. JSON because anything can make and read it; a strict reader because what it says was
//! signed by us: a field we do not know may be a restriction we would ignore.
//!
//! | field | is | |
//! |---|---|---|
//! | `exp` | Unix seconds | at most [`TTL_MAX`] ahead |
//! | `level` | `"normal"`, `"verbose"` | `normal` keeps the record, `verbose` also fills it |
//! | `scope` | `{"app", "host", "path"}` | each optional, see [`Scope`] |
//! | `report` | boolean | the answer carries a report; absent is no |
//! | `uses` | 1 to [`USES_MAX`] | on each node |
//! | `nonce` | 22 characters, base64url | 16 random bytes, which tell tokens apart |

use std::fmt;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::key::{ID_BYTES_MAX, Keys};
use super::scope::{Scope, ScopeError};
use super::{Level, Outcome, level};

/// Longest life of a token.
pub const TTL_MAX: Duration = Duration::from_secs(15 * 60);

/// Uses of one token on one node.
pub const USES_MAX: u32 = 10_000;

/// Bytes of a token; a longer field is none.
pub const TOKEN_BYTES_MAX: usize = 1_024;

/// How far the clock of whoever signs may be ahead of ours.
const SKEW: u64 = 30;

const VERSION: &str = "v1";
const MAC_BYTES: usize = 32;

/// What a token is asked to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    pub level: Level,
    pub scope: Scope,
    /// At most [`TTL_MAX`].
    pub ttl: Duration,
    /// 1 to [`USES_MAX`].
    pub uses: u32,
    /// Whether the answer carries a report.
    pub report: bool,
}

/// A signed token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub token: String,
    /// Unix seconds.
    pub expires: u64,
}

/// Why a token was not signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(transparent)]
    Scope(#[from] ScopeError),
    #[error("ttl must be from 1 s to 15 min")]
    Ttl,
    #[error("uses must be from 1 to {USES_MAX}")]
    Uses,
    #[error("level must be normal or verbose")]
    Level,
    #[error("the scope is too long for a token of {TOKEN_BYTES_MAX} bytes")]
    Long,
    #[error("the system gives no random bytes")]
    Random,
}

/// What a genuine token says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Claims {
    #[serde(rename = "exp")]
    pub(super) expires: u64,
    #[serde(with = "level")]
    pub(super) level: Level,
    #[serde(default, skip_serializing_if = "Scope::is_everything")]
    pub(super) scope: Scope,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) report: bool,
    pub(super) uses: u32,
    pub(super) nonce: Nonce,
}

/// What tells one token from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Nonce(pub(super) u128);

/// The parts of a field that has the form of a token.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<'a> {
    signed: &'a [u8],
    key: &'a [u8],
    payload: &'a [u8],
    mac: [u8; MAC_BYTES],
}

// === impl NewToken ===

impl NewToken {
    /// Signs it with the first of `keys`; `now` is since the Unix epoch.
    ///
    /// # Errors
    ///
    /// When it asks for more than a token may say.
    pub fn sign(&self, keys: &Keys, now: Duration) -> Result<Issued, TokenError> {
        let Self { level, scope, ttl, uses, report } = self;
        if !(Duration::from_secs(1)..=TTL_MAX).contains(ttl) {
            return Err(TokenError::Ttl);
        }
        if !(1..=USES_MAX).contains(uses) {
            return Err(TokenError::Uses);
        }
        if *level == Level::Wide {
            return Err(TokenError::Level);
        }
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| TokenError::Random)?;
        let expires = now.as_secs() + ttl.as_secs();
        let claims = Claims {
            expires,
            level: *level,
            scope: scope.checked()?,
            report: *report,
            uses: *uses,
            nonce: Nonce(u128::from_be_bytes(nonce)),
        };
        let token = claims.sign(keys);
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Long);
        }
        Ok(Issued { token, expires })
    }
}

// === impl Claims ===

impl Claims {
    pub(super) fn sign(&self, keys: &Keys) -> String {
        let payload = serde_json::to_vec(self).expect("strings and numbers are JSON");
        let key = keys.first();
        let signed = format!("{VERSION}.{}.{}", key.id(), URL_SAFE_NO_PAD.encode(payload));
        let mac = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
        format!("{signed}.{mac}")
    }

    /// Reads the payload of a token that was found genuine.
    fn read(payload: &[u8]) -> Option<Self> {
        let mut buffer = [0; TOKEN_BYTES_MAX];
        let length = URL_SAFE_NO_PAD.decode_slice(payload, &mut buffer).ok()?;
        serde_json::from_slice(&buffer[..length]).ok()
    }

    /// Whether the token can be used at `now`, in Unix seconds.
    pub(super) fn check_time(&self, now: u64) -> Result<(), Outcome> {
        if self.expires <= now {
            Err(Outcome::Expired)
        } else if self.expires - now > TTL_MAX.as_secs() + SKEW {
            Err(Outcome::LongLived)
        } else {
            Ok(())
        }
    }
}

// === impl Parts ===

impl<'a> Parts<'a> {
    /// Takes a field apart; says nothing about whether it is genuine.
    pub(super) fn of(field: &'a [u8]) -> Option<Self> {
        if field.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let last_dot = field.iter().rposition(|byte| *byte == b'.')?;
        let (signed, mac) = (&field[..last_dot], &field[last_dot + 1..]);
        let mut parts = signed.split(|byte| *byte == b'.');
        let (version, key, payload) = (parts.next()?, parts.next()?, parts.next()?);
        let in_form = version == VERSION.as_bytes()
            && (1..=ID_BYTES_MAX).contains(&key.len())
            && !payload.is_empty()
            && parts.next().is_none();
        if !in_form {
            return None;
        }
        // One byte more than a MAC has, so that a longer one is seen to be longer.
        let mut buffer = [0; MAC_BYTES + 1];
        let length = URL_SAFE_NO_PAD.decode_slice(mac, &mut buffer).ok()?;
        let mac = buffer[..length].try_into().ok()?;
        Some(Self { signed, key, payload, mac })
    }

    /// Whether one of `keys` could have signed it.
    pub(super) fn has_key(&self, keys: &Keys) -> bool {
        keys.by_id(self.key).is_some()
    }

    /// What it says, if one of `keys` signed it.
    pub(super) fn verify(&self, keys: &Keys) -> Result<Claims, Outcome> {
        let key = keys.by_id(self.key).ok_or(Outcome::UnknownKey)?;
        if !key.is_of(self.signed, &self.mac) {
            return Err(Outcome::Forged);
        }
        // Signed by somebody who has the key, and still not what we write: a later version's.
        Claims::read(self.payload).ok_or(Outcome::Malformed)
    }
}

// === impl Nonce ===

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.0.to_be_bytes()))
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Nonce;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("16 bytes in base64url")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Nonce, E> {
                let mut bytes = [0; 18]; // what 24 characters can decode to
                let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(E::custom)?;
                let bytes = bytes[..length].try_into().map_err(E::custom)?;
                Ok(Nonce(u128::from_be_bytes(bytes)))
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests;
