//! The closed set of things that work can wait for, and how long each may take.

use std::time::Duration;

/// What a line of the board is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Connection = 1,
    Request = 2,
}

macro_rules! states {
    ($($(#[$doc:meta])* $state:ident $name:literal $expected:expr;)*) => {
        /// What it waits for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum State {
            $($(#[$doc])* $state,)*
        }

        impl State {
            pub const ALL: &[Self] = &[$(Self::$state),*];

            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$state => $name,)*
                }
            }

            /// Longest time that this should take where nothing else ends it; what takes longer
            /// is stuck. `None` where waiting is what it is for.
            pub const fn expected(self) -> Option<Duration> {
                match self {
                    $(Self::$state => $expected,)*
                }
            }
        }
    };
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Request => "request",
        }
    }
}

const fn seconds(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

states! {
    /// The TLS handshake, the ClientHello included.
    Handshake "tls handshake" seconds(15);
    /// A connection between its requests, or before the first.
    Idle "idle" None;
    /// A connection with requests on it.
    Serving "serving" None;
    /// Bytes are copied both ways.
    Tunnel "tunnel" None;
    /// Refused or over; its last bytes are leaving.
    Closing "closing" seconds(15);
    /// Which app is meant; no await, so it takes no time.
    Identify "identify" seconds(1);
    /// A permit of an instance.
    Permit "permit" seconds(60);
    /// An upstream connection, and the head of the answer.
    Upstream "upstream" seconds(60);
    /// The body of the answer is on its way.
    Response "response" None;
}

impl State {
    /// Back from its number; a number that is none of them was half written.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}
