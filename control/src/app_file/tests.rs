use std::time::Duration;

use super::*;
use crate::snapshot::{
    Check, CheckKind, Concurrency, ConcurrencyKind, Handlers, HeaderChange, HttpOptions, Port,
    ProxyProtocol, Service, TlsOptions, TlsVersions,
};

fn parse_text(text: &str) -> (Option<App>, Vec<String>) {
    let mut problems = Vec::new();
    let app = parse(Path::new("a.toml"), text, &mut problems);
    (app, problems.iter().map(Problem::to_string).collect())
}

/// The app of a text that has nothing wrong with it.
fn accepted(text: &str) -> App {
    let (app, problems) = parse_text(text);
    assert!(problems.is_empty(), "{problems:?}");
    app.expect("no problem, so an app")
}

/// The first service of an app that has `service` as its only section.
fn service(service: &str) -> Service {
    accepted(&format!("app = \"a\"\nhostnames = [\"a.example\"]\n{service}")).services.remove(0)
}

/// Every problem of `text`, an app otherwise complete, must be `expected`; the first line is 1.
#[track_caller]
fn refused(text: &str, expected: &[&str]) {
    let text = format!("{text}\n[[instances]]\nid = \"i\"\nnode = \"n\"\naddress = \"::1\"\n");
    let (app, problems) = parse_text(&text);
    assert_eq!(problems, expected);
    assert!(app.is_none());
}

/// A `[[services]]` with one port 443 that has `port` in it must be refused with `expected`.
#[track_caller]
fn port_refused(port: &str, expected: &[&str]) {
    let head = "app = \"a\"\naddresses = [\"::2\"]\n[[services]]\n[[services.ports]]\nport = 443\n";
    refused(&format!("{head}{port}"), expected);
}

#[test]
fn an_app_is_read_with_the_names_of_fly_toml() {
    let app = accepted(
        r#"
app = "hello"
hostnames = ["Hello.example", "*.hello.example."]
addresses = ["198.51.100.7", "2001:db8:1::7"]
compat = "fly"

[http_service]
internal_port = 3000
force_https = true
[http_service.concurrency]
type = "requests"
soft_limit = 200
hard_limit = 250
[[http_service.checks]]
grace_period = "10s"
interval = 30000
timeout = "5s"
method = "head"
path = "/health"
[http_service.checks.headers]
X-Probe = "ferrule"

[[instances]]
id = "hello-1"
node = "ams-1"
address = "127.0.0.1"
[[instances]]
id = "hello-2"
node = "fra-1"
address = "fd00::2"
cordoned = true
"#,
    );
    assert_eq!(app.name.as_str(), "hello");
    let hostnames: Vec<_> = app.hostnames.iter().map(Hostname::to_string).collect();
    assert_eq!(hostnames, ["hello.example", "*.hello.example"]);
    assert_eq!(app.addresses.len(), 2);
    assert_eq!(app.compat, Compat::Fly);
    let service = &app.services[0];
    assert_eq!(service.internal_port, 3000);
    let kind = ConcurrencyKind::Requests;
    assert_eq!(service.concurrency, Concurrency { kind, soft_limit: 200, hard_limit: Some(250) });
    let kind = CheckKind::Http {
        method: "HEAD".into(),
        path: "/health".into(),
        headers: vec![("x-probe".into(), "ferrule".into())],
    };
    let (grace_period, interval) = (Duration::from_secs(10), Duration::from_secs(30));
    let timeout = Duration::from_secs(5);
    assert_eq!(service.checks, [Check { kind, grace_period, interval, timeout }]);
    let instances: Vec<_> =
        app.instances.iter().map(|i| (i.id.as_str(), i.node.as_str(), i.cordoned)).collect();
    assert_eq!(instances, [("hello-1", "ams-1", false), ("hello-2", "fra-1", true)]);
}

#[test]
fn an_http_service_stands_for_port_80_and_port_443() {
    let service = service("[http_service]\nforce_https = true\n");
    let clear = Handlers { http: true, ..Handlers::default() };
    let port = |number, handlers, force_https| Port {
        range: number..=number,
        handlers,
        force_https,
        tls: TlsOptions::default(),
        http: HttpOptions::default(),
    };
    let secure = Handlers { tls: true, ..clear };
    assert_eq!(service.ports, [port(80, clear, true), port(443, secure, false)]);
    assert_eq!((service.internal_port, service.concurrency), (8080, Concurrency::default()));
}

#[test]
fn a_port_may_be_a_range_with_an_open_end() {
    let range = |port: &str| {
        let service = service(&format!("[[services]]\n[[services.ports]]\n{port}"));
        service.ports[0].range.clone()
    };
    assert_eq!(range("port = 5432"), 5432..=5432);
    assert_eq!(range("start_port = 8000\nend_port = 8010"), 8000..=8010);
    assert_eq!(range("start_port = 60000"), 60000..=65535);
    assert_eq!(range("end_port = 10"), 1..=10);
}

#[test]
fn handlers_may_stand_in_any_order() {
    let handlers = |port: &str| {
        service(&format!("[[services]]\n[[services.ports]]\nport = 1\n{port}")).ports[0].handlers
    };
    let (tls, http) = (true, true);
    let both = Handlers { tls, http, proxy_protocol: None };
    assert_eq!(handlers("handlers = [\"tls\", \"http\"]"), both);
    assert_eq!(handlers("handlers = [\"http\", \"tls\"]"), both);
    assert_eq!(handlers(""), Handlers::default());
    let proxied = |version| Handlers { proxy_protocol: Some(version), ..Handlers::default() };
    assert_eq!(handlers("handlers = [\"proxy_proto\"]"), proxied(ProxyProtocol::V1));
    let v2 = "handlers = [\"proxy_proto\", \"tls\"]\nproxy_proto_options = { version = \"v2\" }";
    assert_eq!(handlers(v2), Handlers { tls, ..proxied(ProxyProtocol::V2) });
}

#[test]
fn tls_and_http_options_are_read() {
    let service = service(
        r#"
[[services]]
[[services.ports]]
port = 8443
handlers = ["tls", "http"]
[services.ports.tls_options]
alpn = ["h2"]
versions = ["TLSv1.3"]
default_self_signed = true
[services.ports.http_options]
h2_backend = true
[services.ports.http_options.response]
pristine = true
[services.ports.http_options.response.headers]
X-Frame-Options = "DENY"
Server = false
Vary = ["accept", "origin"]
"#,
    );
    let port = &service.ports[0];
    let alpn = vec!["h2".into()];
    let tls = TlsOptions { alpn, versions: TlsVersions::Tls13, default_self_signed: true };
    assert_eq!(port.tls, tls);
    let http = HttpOptions {
        h2_backend: true,
        response_headers: vec![
            ("x-frame-options".into(), HeaderChange::Set(vec!["DENY".into()])),
            ("server".into(), HeaderChange::Remove),
            ("vary".into(), HeaderChange::Set(vec!["accept".into(), "origin".into()])),
        ],
        pristine: true,
    };
    assert_eq!(port.http, http);
}

#[test]
fn without_the_http_handler_no_alpn_is_offered_unless_named() {
    let alpn = |port: &str| {
        let text =
            format!("[[services]]\n[[services.ports]]\nport = 1\nhandlers = [\"tls\"]\n{port}");
        service(&text).ports[0].tls.alpn.clone()
    };
    assert_eq!(alpn(""), []);
    assert_eq!(alpn("tls_options = { alpn = [\"mqtt\"] }"), ["mqtt".into()]);
}

#[test]
fn checks_have_the_defaults_of_fly_toml() {
    let service = service(
        "[[services]]\ntcp_checks = [{}]\nhttp_checks = [{ path = \"/up\" }]\nports = [{ port = 1 }]",
    );
    let (grace_period, interval, timeout) =
        (Duration::from_secs(1), Duration::from_secs(15), Duration::from_secs(2));
    let check = |kind| Check { kind, grace_period, interval, timeout };
    let http = CheckKind::Http { method: "GET".into(), path: "/up".into(), headers: vec![] };
    assert_eq!(service.checks, [check(CheckKind::Tcp), check(http)]);
}

#[test]
fn a_limit_of_zero_is_the_default_and_a_low_hard_limit_lowers_the_default_soft_limit() {
    let limits = |limits: &str| {
        let service = service(&format!("[http_service]\nconcurrency = {{ {limits} }}"));
        (service.concurrency.soft_limit, service.concurrency.hard_limit)
    };
    assert_eq!(limits(""), (20, None));
    assert_eq!(limits("soft_limit = 0, hard_limit = 0"), (20, None));
    assert_eq!(limits("hard_limit = 5"), (5, Some(5)));
    assert_eq!(limits("soft_limit = 5, hard_limit = 5"), (5, Some(5)));
}

#[test]
fn keys_for_other_parts_of_a_platform_are_warnings() {
    let (app, problems) = parse_text(
        r#"
app = "a"
primary_region = "ams"
hostnames = ["a.example"]
[env]
A = "1"
[http_service]
auto_stop_machines = "stop"
min_machines_running = 1
http_options = { compress = true }
[[services]]
processes = ["web"]
ports = [{ port = 25, http_options = {} }]
[[vm]]
size = "small"
"#,
    );
    assert!(app.is_some());
    let keys: Vec<_> = problems.iter().filter_map(|line| line.split(": ").nth(2)).collect();
    assert!(problems.iter().all(|line| line.contains(": warning: ")), "{problems:?}");
    assert_eq!(
        keys,
        [
            "primary_region",
            "env",
            "http_service.auto_stop_machines",
            "http_service.min_machines_running",
            "http_service.http_options.compress",
            "services[0].processes",
            "services[0].ports[0].http_options",
            "vm",
        ]
    );
}

#[test]
fn an_app_needs_a_name_and_a_port() {
    refused(
        "",
        &[
            "a.toml:1:1: app: is missing",
            "a.toml:1:1: needs an [http_service] or a [[services]] with a port",
        ],
    );
    refused(
        "app = \"a\"\n[[services]]\n",
        &["a.toml:2:1: services[0].ports: needs at least one port"],
    );
    refused(
        "app = \"a\"\n[[services]]\nports = []\n",
        &["a.toml:3:9: services[0].ports: needs at least one port"],
    );
    refused(
        "app = \"a\"\n[[services]]\nports = 1\n",
        &["a.toml:3:9: services[0].ports: must be a list, not 1"],
    );
    refused(
        "app = \"A\"\n[http_service]",
        &[
            "a.toml:1:1: warning: hostnames: no hostnames and no addresses: no HTTP request can mean this app",
            "a.toml:1:7: app: must be 1 to 63 of a-z, 0-9 and -, not starting with -",
        ],
    );
}

#[test]
fn names_addresses_and_instances_are_checked_and_listed_once() {
    refused(
        r#"app = "a"
hostnames = ["a.example", "A.example.", "a b"]
addresses = ["198.51.100.7", "0.0.0.0", "::ffff:198.51.100.7", "224.0.0.1"]
compat = "flyy"
[http_service]
[[instances]]
id = "i"
node = ""
address = "::"
"#,
        &[
            "a.toml:2:27: hostnames[1]: is listed twice",
            "a.toml:2:41: hostnames[2]: is not a DNS name",
            "a.toml:3:30: addresses[1]: must be the address of one machine, not \"0.0.0.0\"",
            "a.toml:3:41: addresses[2]: is listed twice",
            "a.toml:3:64: addresses[3]: must be the address of one machine, not \"224.0.0.1\"",
            "a.toml:4:10: compat: must be one of \"ferrule\", \"fly\", not \"flyy\"; did you mean \"fly\"?",
            "a.toml:8:8: instances[0].node: must be 1 to 64 of A-Z, a-z, 0-9, -, _ and .",
            "a.toml:9:11: instances[0].address: must be the address of one machine, not \"::\"",
            "a.toml:12:6: instances[1].id: instance \"i\" is listed twice",
        ],
    );
}

#[test]
fn the_ports_of_an_app_do_not_overlap() {
    refused(
        r#"app = "a"
addresses = ["::2"]
[http_service]
[[services]]
ports = [{ port = 81 }, { port = 443 }]
[[services]]
ports = [{ start_port = 70, end_port = 82 }]
"#,
        &[
            "a.toml:5:34: services[0].ports[1].port: port 443 is taken by http_service already",
            "a.toml:7:25: services[1].ports[0].start_port: port 80 is taken by http_service already",
        ],
    );
    refused(
        "app = \"a\"\n[[services]]\nports = [{ port = 1, end_port = 2 }, {}, { start_port = 5, end_port = 4 }]",
        &[
            "a.toml:3:19: services[0].ports[0].port: must stand alone, without start_port and end_port",
            "a.toml:3:38: services[0].ports[1].port: is missing (or start_port and end_port)",
            "a.toml:3:57: services[0].ports[2].start_port: must not be above end_port (5 > 4)",
        ],
    );
}

#[test]
fn handlers_that_do_not_go_together_are_refused() {
    port_refused(
        "handlers = [\"proxy_proto\", \"http\"]",
        &[
            "a.toml:6:12: services[0].ports[0].handlers: \"proxy_proto\" goes with raw TCP or \"tls\", not with \"http\"",
        ],
    );
    port_refused(
        "handlers = [\"tls\", \"tls\"]",
        &["a.toml:6:20: services[0].ports[0].handlers[1]: is listed twice"],
    );
    port_refused(
        "handlers = [\"pg_tls\"]",
        &[
            "a.toml:6:13: services[0].ports[0].handlers[0]: the \"pg_tls\" handler is not served yet",
        ],
    );
    port_refused(
        "handlers = [\"tsl\"]",
        &[
            "a.toml:6:13: services[0].ports[0].handlers[0]: must be one of \"tls\", \"http\", \"proxy_proto\", \"pg_tls\", \"edge_http\", not \"tsl\"; did you mean \"tls\"?",
        ],
    );
    port_refused(
        "force_https = true",
        &["a.toml:6:15: services[0].ports[0].force_https: needs the \"http\" handler"],
    );
    refused(
        "app = \"a\"\n[[services]]\nprotocol = \"udp\"\nports = [{ port = 53 }]",
        &["a.toml:3:12: services[0].protocol: udp services are not served yet"],
    );
}

#[test]
fn alpn_and_versions_are_checked() {
    port_refused(
        "handlers = [\"tls\", \"http\"]\ntls_options = { alpn = [\"mqtt\"], versions = [\"TLSv1.1\"] }",
        &[
            "a.toml:7:25: services[0].ports[0].tls_options.alpn[0]: must be \"h2\" or \"http/1.1\" on a port with the \"http\" handler, not \"mqtt\"",
            "a.toml:7:46: services[0].ports[0].tls_options.versions[0]: must be one of \"TLSv1.2\", \"TLSv1.3\", not \"TLSv1.1\"; did you mean \"TLSv1.2\"?",
        ],
    );
    port_refused(
        "handlers = [\"tls\"]\ntls_options = { alpn = [\"\"], versions = [] }",
        &[
            "a.toml:7:25: services[0].ports[0].tls_options.alpn[0]: must be a protocol name of 1 to 255 bytes, not \"\"",
            "a.toml:7:41: services[0].ports[0].tls_options.versions: must name \"TLSv1.2\", \"TLSv1.3\" or both",
        ],
    );
}

#[test]
fn no_response_header_can_break_a_message() {
    let check = |header: &str, message: &str| {
        let section = "[services.ports.http_options.response.headers]";
        let text = format!(
            "app = \"a\"\naddresses = [\"::2\"]\n[[services]]\n[[services.ports]]\nport = 80\n\
             handlers = [\"http\"]\n{section}\n{header}"
        );
        let (app, problems) = parse_text(&text);
        assert!(app.is_none(), "{header}");
        assert!(
            problems.iter().any(|problem| problem.ends_with(message)),
            "{header}: {problems:?}"
        );
    };
    let value = "must be a header value: ASCII without control characters and surrounding spaces";
    let connection = "belongs to the connection; an app cannot set or remove it";
    check("x = \"a\\r\\nb: c\"", value);
    check("x = \"a\\nb\"", value);
    check("x = \"\\u0000\"", value);
    check("x = \"\\u007f\"", value);
    check("x = \" a\"", value);
    check("x = \"é\"", value);
    check("x = [\"a\", \"b\\r\"]", value);
    check("\"x y\" = \"a\"", "is not a header name");
    check("\"\" = \"a\"", "is not a header name");
    check("\"x\\n\" = \"a\"", "is not a header name");
    check("\"é\" = \"a\"", "is not a header name");
    for name in ["Content-Length", "transfer-encoding", "Connection", "upgrade", "TE"] {
        check(&format!("{name} = \"1\""), connection);
        check(&format!("{name} = false"), connection);
    }
    let kind = "must be false (remove it), a value or a list of values, not ";
    check("x = true", &format!("{kind}true"));
    check("x = 1", &format!("{kind}1"));
    check("x = []", &format!("{kind}a list"));
    check("X-A = \"1\"\nx-a = \"2\"", "is listed twice");
    let many: String = (0..65).map(|n| format!("x-{n} = false\n")).collect();
    check(&many, "must not change more than 64 headers");
}

#[test]
fn checks_are_kept_within_their_ranges() {
    refused(
        r#"app = "a"
addresses = ["::2"]
[http_service]
[[http_service.checks]]
path = "health"
method = "GET /"
interval = 1
timeout = "2h"
protocol = "https"
headers = { host = "a\r\n" }
"#,
        &[
            "a.toml:5:8: http_service.checks[0].path: must be a path that starts with /, without spaces, # and control characters",
            "a.toml:6:10: http_service.checks[0].method: must be an HTTP method other than CONNECT",
            "a.toml:7:12: http_service.checks[0].interval: must be a duration from \"100ms\" to \"1h\" or a number of milliseconds, not 1",
            "a.toml:8:11: http_service.checks[0].timeout: must be a duration from \"10ms\" to \"1m\" or a number of milliseconds, not \"2h\"",
            "a.toml:9:12: http_service.checks[0].protocol: https checks are not made yet",
            "a.toml:10:20: http_service.checks[0].headers.host: must be a header value: ASCII without control characters and surrounding spaces",
        ],
    );
}

#[test]
fn limits_are_kept_in_order_and_unknown_keys_are_named() {
    refused(
        r#"app = "a"
adresses = ["::2"]
hostnames = ["a.example"]
[http_service]
internal_prot = 1
[http_service.concurrency]
type = "request"
soft_limit = 30
hard_limit = 25
"#,
        &[
            "a.toml:2:1: adresses: unknown key \"adresses\"; did you mean \"addresses\"?",
            "a.toml:5:1: http_service.internal_prot: unknown key \"internal_prot\"; did you mean \"internal_port\"?",
            "a.toml:7:8: http_service.concurrency.type: must be one of \"requests\", \"connections\", not \"request\"; did you mean \"requests\"?",
            "a.toml:8:14: http_service.concurrency.soft_limit: must not be above hard_limit (30 > 25)",
        ],
    );
}
