use super::*;
use crate::inventory::tests::{HTTPS, RAW, app, limited, port};
use control::snapshot::Handlers;
use proptest::prelude::*;

fn wanting(name: &str, ports: &[(RangeInclusive<u16>, Handlers)]) -> App {
    let mut app = app(name, vec![limited(1, None)], Vec::new());
    app.services[0].ports =
        ports.iter().map(|(range, handlers)| port(range.clone(), *handlers)).collect();
    app
}

fn owner(claims: &Claims, port: u16) -> Option<SharedPort> {
    claims.shared_ports().at(port).cloned()
}

#[test]
fn http_takes_its_ports_out_of_a_wide_raw_range() {
    let mut claims = Claims::default();
    claims.replace(None, Some(&wanting("wide", &[(1..=65535, RAW)])));
    claims.replace(None, Some(&wanting("web", &[(443..=443, HTTPS)])));
    let wide = SharedPort::Of(AppName::new("wide"));
    for (port, expected) in [
        (0, None),
        (1, Some(wide.clone())),
        (442, Some(wide.clone())),
        (443, Some(SharedPort::Http { tls: true })),
        (444, Some(wide.clone())),
        (65535, Some(wide)),
    ] {
        assert_eq!(owner(&claims, port), expected, "{port}");
    }
    assert_eq!(claims.shared_ports().ranges.len(), 3);
    assert_eq!(claims.in_use().shared, [1..=65535]);
}

#[test]
fn a_port_is_in_use_until_the_last_app_that_wants_it_goes() {
    let (one, other) = (wanting("a", &[(443..=443, HTTPS)]), wanting("b", &[(443..=443, HTTPS)]));
    let mut claims = Claims::default();
    claims.replace(None, Some(&one));
    claims.replace(None, Some(&other));
    claims.replace(Some(&one), None);
    assert_eq!(claims.in_use().shared, [443..=443]);
    claims.replace(Some(&other), None);
    assert_eq!(claims.in_use(), PortsInUse::default());
    assert_eq!(claims.shared_ports(), SharedPorts::default());
}

fn wishes() -> impl Strategy<Value = Vec<(u16, u16, bool, bool)>> {
    let wish = (0_u16..40, 0_u16..10, any::<bool>(), any::<bool>());
    proptest::collection::vec(wish, 0..12)
}

proptest! {
    #[test]
    fn the_sweep_says_the_same_as_asking_every_app(wishes in wishes(), gone in 0_usize..12) {
        let mut apps: Vec<App> = wishes
            .iter()
            .enumerate()
            .map(|(index, (first, length, http, tls))| {
                let handlers = Handlers { tls: *tls, http: *http, proxy_protocol: None };
                wanting(&format!("app-{index:02}"), &[(*first..=first + length, handlers)])
            })
            .collect();
        let mut claims = Claims::default();
        apps.iter().for_each(|app| claims.replace(None, Some(app)));
        if gone < apps.len() {
            claims.replace(Some(&apps.remove(gone)), None);
        }
        let (shared, in_use) = (claims.shared_ports(), claims.in_use().shared);
        for number in 0..60 {
            let wanted: Vec<_> = apps
                .iter()
                .map(|app| (&app.name, &app.services[0].ports[0]))
                .filter(|(_, port)| port.range.contains(&number))
                .collect();
            let http = wanted.iter().filter(|(_, port)| port.handlers.http);
            let expected = match http.map(|(_, port)| port.handlers.tls).max() {
                Some(tls) => Some(SharedPort::Http { tls }),
                None => wanted.iter().map(|(name, _)| SharedPort::Of((*name).clone())).next(),
            };
            prop_assert_eq!(shared.at(number), expected.as_ref(), "{}", number);
            let listened = in_use.iter().any(|range| range.contains(&number));
            prop_assert_eq!(listened, !wanted.is_empty());
        }
    }
}
