//! Verbosity tokens: nothing but what was signed is one.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;
use std::time::Duration;

use telemetry::ledger::Ledger;
use telemetry::metrics::Registry;
use telemetry::verbosity::{
    Config, Facts, Keys, Level, NewToken, Now, Outcome, Scope, Verbosity, token,
};

/// A node, its key's id and a token of it.
static NODE: LazyLock<(Verbosity, String, String)> = LazyLock::new(|| {
    let registry = Registry::new(1, Outcome::ALL.len());
    // As many as there are: none may get through because it was not looked at.
    let config = Config { tokens_per_second_max: u32::MAX, ..Config::default() };
    let keys = Keys::random().expect("the system has random bytes");
    let id = keys.ids().next().expect("there is a key").to_owned();
    let genuine = NewToken {
        level: Level::Verbose,
        scope: Scope::default(),
        ttl: token::TTL_MAX,
        uses: token::USES_MAX,
        report: true,
    };
    let signed = genuine.sign(&keys, NOW).expect("within the bounds").token;
    let node = Verbosity::new(&config, keys, &registry, &Ledger::new(registry.clone()));
    assert!(is_granted(&node, signed.as_bytes()), "the genuine one is taken");
    (node, id, signed)
});

const NOW: Duration = Duration::from_secs(1_700_000_000);

/// No bytes are a token: alone, behind the id of a key that exists, or written into a genuine one.
pub fn trace_token(bytes: &[u8]) {
    let (node, id, genuine) = &*NODE;
    assert!(!is_granted(node, bytes));
    assert!(!is_granted(node, &[b"v1.", id.as_bytes(), b".", bytes].concat()));
    let Some((place, patch)) = bytes.split_first() else { return };
    let place = usize::from(*place) % genuine.len();
    let (start, end) = genuine.as_bytes().split_at(place);
    let rest = end.get(patch.len()..).unwrap_or_default();
    for changed in [[start, patch, rest].concat(), [start, patch, end].concat()] {
        assert!(changed == genuine.as_bytes() || !is_granted(node, &changed));
    }
}

fn is_granted(node: &Verbosity, field: &[u8]) -> bool {
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let facts = Facts { app: "app", host: "app.example", path: "/", client };
    let now = Now { unix: NOW, ..Now::read() };
    node.from_token(field, &facts, now).is_some()
}
