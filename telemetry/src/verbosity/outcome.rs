//! What becomes of a token: told to the operator as a counter, to the client not at all.

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Granted,
    /// Not of a token's form, or genuine and not understood.
    Malformed,
    /// More than this node verifies in a second.
    RateLimited,
    UnknownKey,
    Forged,
    Expired,
    /// Valid for longer than a token may be.
    LongLived,
    /// Genuine, and about other requests.
    OutOfScope,
    UsedUp,
    /// More tokens at a time than are counted.
    TableFull,
    /// Above what the node spends on verbosity.
    Suppressed,
}

// === impl Outcome ===

impl Outcome {
    pub const ALL: [Self; 11] = [
        Self::Granted,
        Self::Malformed,
        Self::RateLimited,
        Self::UnknownKey,
        Self::Forged,
        Self::Expired,
        Self::LongLived,
        Self::OutOfScope,
        Self::UsedUp,
        Self::TableFull,
        Self::Suppressed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Malformed => "malformed",
            Self::RateLimited => "rate_limited",
            Self::UnknownKey => "unknown_key",
            Self::Forged => "forged",
            Self::Expired => "expired",
            Self::LongLived => "long_lived",
            Self::OutOfScope => "out_of_scope",
            Self::UsedUp => "used_up",
            Self::TableFull => "table_full",
            Self::Suppressed => "suppressed",
        }
    }
}
