use std::net::IpAddr;

use super::*;
use crate::config::{Filter, FilterMode, Limits, ListenMode, Timeouts};

const DOCUMENTED: &str = include_str!("../../../../config/edge.toml");
const MINIMAL: &str = "[node]\nid = \"ams-1\"\nregion = \"ams\"\n";

fn problems(text: &str) -> Vec<String> {
    let problems = match parse(Path::new("/etc/ferrule/edge.toml"), text) {
        Ok((_, warnings)) => warnings,
        Err(problems) => problems,
    };
    let line = |problem: &Problem| {
        problem.to_string().strip_prefix("/etc/ferrule/edge.toml:").expect("the file").to_owned()
    };
    problems.iter().map(line).collect()
}

fn accepted(text: &str) -> Config {
    match parse(Path::new("/etc/ferrule/edge.toml"), text) {
        Ok((config, warnings)) => {
            assert_eq!(warnings, []);
            config
        }
        Err(problems) => panic!("refused: {problems:#?}"),
    }
}

/// The names of a struct's fields, from its Debug output.
fn fields(value: &impl std::fmt::Debug) -> Vec<String> {
    let shown = format!("{value:#?}");
    let field = |line: &str| Some(line.strip_prefix("    ")?.split_once(':')?.0.to_owned());
    shown.lines().filter_map(field).collect()
}

#[test]
fn every_documented_default_is_the_default() {
    assert_eq!(accepted(DOCUMENTED), accepted(MINIMAL));
}

#[test]
fn defaults_start_at_the_folder_of_the_file() {
    let config = accepted(MINIMAL);
    assert_eq!(config.telemetry.verbosity, ::telemetry::verbosity::Config::default());
    assert_eq!(config.inventory.directory, Path::new("/etc/ferrule/apps"));
    assert_eq!(config.certificates.directory, Path::new("/etc/ferrule/certificates"));
    assert_eq!(config.storage.directory, Path::new("/var/lib/ferrule"));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.timeouts, Timeouts::default());
}

#[test]
fn every_bound_is_documented_and_read() {
    let sections =
        [("limits", fields(&Limits::default())), ("timeouts", fields(&Timeouts::default()))];
    assert_eq!(sections[0].1.len() + sections[1].1.len(), 49);
    for (section, keys) in sections {
        for key in keys {
            assert!(DOCUMENTED.contains(&format!("\n{key} = ")), "{key} is not documented");
            let lines = problems(&format!("{MINIMAL}[{section}]\n{key} = true\n"));
            assert!(
                lines.len() == 1 && lines[0].contains(&format!("{section}.{key}: must be")),
                "{key}: {lines:?}"
            );
        }
    }
}

#[test]
fn every_bound_of_verbosity_is_documented_and_read() {
    for key in fields(&::telemetry::verbosity::Config::default()) {
        let documented = DOCUMENTED.contains(&format!("\n{key} = "))
            || DOCUMENTED.contains(&format!("\n#{key} = "));
        assert!(documented, "{key} is not documented");
        let lines = problems(&format!("{MINIMAL}[telemetry.verbosity]\n{key} = true\n"));
        let expected = format!("telemetry.verbosity.{key}: must be");
        assert!(lines.len() == 1 && lines[0].contains(&expected), "{key}: {lines:?}");
    }
}

#[test]
fn the_examples_in_the_documented_file_are_right() {
    let uncomment = |line: &str| match line.strip_prefix('#') {
        Some(example) if !example.starts_with(' ') && !example.is_empty() => example.to_owned(),
        _ => line.to_owned(),
    };
    let text: Vec<String> = DOCUMENTED.lines().map(uncomment).collect();
    let text = text.join("\n");
    let lines = problems(&text);
    let not_yet = "is understood, but not acted on yet";
    assert!(lines.iter().all(|line| line.ends_with(not_yet)), "{lines:#?}");
    assert_eq!(lines.len(), 1);
    let (config, _) = parse(Path::new("/etc/ferrule/edge.toml"), &text).expect("only warnings");
    assert_eq!(config.node.workers, 4);
    assert_eq!(config.telemetry.verbosity.key_file, Path::new("/etc/ferrule/trace.key"));
    let mesh = config.mesh.expect("the example has a mesh");
    assert_eq!(mesh.ca, Path::new("/etc/ferrule/mesh-ca.pem"));
    assert_eq!(mesh.trust_domain, "ferrule");
    assert_eq!(mesh.peers.len(), 1);
    let announce = config.announce.expect("the example has an announcer");
    assert_eq!(announce.probe.ca.as_deref(), Some(Path::new("/etc/ferrule/probe-ca.pem")));
}

#[test]
fn a_written_value_is_taken() {
    let text = format!(
        "{MINIMAL}workers = 3\n\
         [storage]\ndirectory = \"state\"\n\
         [listen]\nmode = \"bind\"\naddresses = [\"127.0.0.1\"]\nbacklog = 128\n\
         [limits]\nconnections_max = 50_000\nhead_bytes_max = \"64KiB\"\n\
         [timeouts]\nh1_idle = \"90s\"\n\
         [telemetry.verbosity]\ntokens_per_second_max = 7\nbytes_per_second_max = \"1MiB\"\n\
         [admin]\naddress = \"127.0.0.1:0\"\nsocket = \"admin.sock\"\n"
    );
    let config = accepted(&text);
    assert_eq!(config.node.workers, 3);
    assert_eq!(config.storage.directory, Path::new("/etc/ferrule/state"));
    let verbosity = &config.telemetry.verbosity;
    assert_eq!(verbosity.key_file, Path::new("/etc/ferrule/state/trace.key"));
    let bounds = (verbosity.tokens_per_second_max, verbosity.bytes_per_second_max);
    assert_eq!((bounds, verbosity.requests_percent_max), ((7, 1 << 20), 1));
    assert_eq!(config.listen.mode, ListenMode::Bind);
    assert_eq!(config.listen.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(config.limits.head_bytes_max, 65_536);
    assert_eq!(config.timeouts.h1_idle, Duration::from_secs(90));
    assert_eq!(config.admin.socket, Path::new("/etc/ferrule/admin.sock"));
}

#[test]
fn a_default_follows_the_bound_around_it() {
    let config = accepted(&format!("{MINIMAL}[limits]\nconnections_max = 100\n"));
    let Limits { app_connections_max, handshakes_in_flight_max, handshakes_per_prefix_max, .. } =
        config.limits;
    let inner = (app_connections_max, handshakes_in_flight_max, handshakes_per_prefix_max);
    assert_eq!(inner, (100, 100, 100));
}

#[test]
fn each_mistake_is_named() {
    let check = |section: &str, expected: &[&str]| {
        assert_eq!(problems(&format!("{MINIMAL}{section}\n")), expected, "{section}");
    };
    check("workers = 0", &["4:11: node.workers: must be a number from 1 to 1024, not 0"]);
    check(
        "[listen]\nmode = \"steer\"",
        &["5:8: listen.mode: \"steer\" needs prefixes: what is to be steered here"],
    );
    check(
        "[listen]\naddresses = [\"224.0.0.1\", \"here\"]",
        &[
            "5:14: listen.addresses[0]: must be an address of this node, not \"224.0.0.1\"",
            "5:27: listen.addresses[1]: must be an IP address, not \"here\"",
        ],
    );
    check(
        "[listen]\naddresses = [\"::\", \"::\"]",
        &["5:20: listen.addresses[1]: is listed twice"],
    );
    check(
        "[listen]\nprefixes = [\"198.51.100.7/24\"]",
        &[
            "5:13: listen.prefixes[0]: has bits set beyond its length; write the range's first address",
        ],
    );
    check(
        "[inventory]\nsource = \"nats\"",
        &["5:10: inventory.source: \"nats\" is not available in this build; use \"directory\""],
    );
    check(
        "[filter]\nmode = \"xdp\"",
        &["5:8: filter.mode: needs listen.prefixes: outside them nothing is filtered"],
    );
    check(
        "[telemetry.otlp]\nendpoint = \"collector:4318\"",
        &["5:12: telemetry.otlp.endpoint: must be a URL that starts with http:// or https://, \
           not \"collector:4318\""],
    );
    check(
        "[telemetry.verbosity]\nrequests_percent_max = 101\nkey_fil = \"trace.key\"",
        &[
            "5:24: telemetry.verbosity.requests_percent_max: must be a number from 0 to 100, \
             not 101",
            "6:1: telemetry.verbosity.key_fil: unknown key \"key_fil\"; did you mean \"key_file\"?",
        ],
    );
    check(
        "[limits]\napp_connections_max = 100_001",
        &["5:23: limits.app_connections_max: must not be above connections_max, which is 100000"],
    );
    check(
        "[limits]\nhandshakes_in_flight_max = 10\nhandshakes_per_prefix_max = 11",
        &["6:29: limits.handshakes_per_prefix_max: must not be above handshakes_in_flight_max, \
           which is 10"],
    );
    check(
        "[limits]\nheader_bytes_max = \"33KiB\"",
        &["5:20: limits.header_bytes_max: must not be above head_bytes_max, which is 32768"],
    );
    check(
        "[limits]\nh2_stream_window_bytes = \"2MiB\"",
        &["5:26: limits.h2_stream_window_bytes: must not be above h2_connection_window_bytes, \
           which is 1048576"],
    );
    check(
        "[timeouts]\nqueue = 5",
        &["5:9: timeouts.queue: must be a duration from \"0s\" to \"10m\", not 5"],
    );
    check(
        "[limits]\nconnection_max = 5",
        &["5:1: limits.connection_max: unknown key \"connection_max\"; \
           did you mean \"connections_max\"?"],
    );
    check("[limit]", &["4:2: limit: unknown key \"limit\"; did you mean \"limits\"?"]);
    check(
        "[admin]\naddress = \"0.0.0.0:9900\"",
        &["5:11: warning: admin.address: is not a loopback address: whoever reaches it can read \
           this node's pages"],
    );
    let long = format!("/run/{}", "a".repeat(103));
    check(
        &format!("[admin]\nsocket = \"{long}\""),
        &["5:10: admin.socket: is 108 bytes long with its folder; a socket's path may have 107"],
    );
    check(
        "[inventory.nats]\nservers = [\"nats://nats-1:4222\"]",
        &["5:11: warning: inventory.nats.servers: is understood, but not acted on yet"],
    );
}

#[test]
fn prefixes_are_whole_apart_and_nobodys_own() {
    let check = |section: &str, expected: &[&str]| {
        assert_eq!(problems(&format!("{MINIMAL}{section}\n")), expected, "{section}");
    };
    check("[listen]\nmode = \"steer\"\nprefixes = [\"198.51.100.0/24\", \"2001:db8:1::/48\"]", &[]);
    check(
        "[listen]\nprefixes = [\"198.51.100.0/24\", \"198.51.100.128/25\", \"2001:db8::/32\", \
         \"2001:db8::/32\"]",
        &[
            "5:32: listen.prefixes[1]: overlaps 198.51.100.0/24",
            "5:70: listen.prefixes[3]: overlaps 2001:db8::/32",
        ],
    );
    check(
        "[listen]\nprefixes = [\"127.1.0.0/24\", \"::/0\"]",
        &[
            "5:13: listen.prefixes[0]: contains loopback addresses",
            "5:29: listen.prefixes[1]: contains unspecified or loopback addresses",
        ],
    );
    let many: Vec<_> = (0..257).map(|n| format!("\"2001:db8:{n:x}::/48\"")).collect();
    check(
        &format!("[listen]\nprefixes = [{}]", many.join(",")),
        &["5:12: listen.prefixes: has more than 256 ranges"],
    );
    check(
        "[listen]\nmode = \"steer\"\naddresses = [\"10.0.0.1\", \"198.51.100.1\"]\n\
         prefixes = [\"198.51.100.0/24\"]",
        &["6:14: warning: listen.addresses[0]: lies in none of the prefixes: with mode \"steer\" \
           nothing comes to it"],
    );
    check(
        "[listen]\nprefixes = [\"10.0.0.0/24\", \"10.0.1.0/24\", \"10.0.2.0/24\"]\n\
         [admin]\naddress = \"10.0.0.1:9900\"\n\
         [mesh]\naddress = \"10.0.1.1:7443\"\ncertificate = \"m.pem\"\nkey = \"m.key\"\n\
         ca = \"ca.pem\"\n\
         [[mesh.peers]]\nid = \"fra-1\"\nregion = \"fra\"\naddress = \"10.0.2.1:7443\"",
        &[
            "5:13: listen.prefixes[0]: contains admin.address, 10.0.0.1, which is no app's",
            "5:28: listen.prefixes[1]: contains mesh.address, 10.0.1.1, which is no app's",
            "5:43: listen.prefixes[2]: contains the address of peer \"fra-1\", 10.0.2.1, which is \
             no app's",
            "7:11: warning: admin.address: is not a loopback address: whoever reaches it can read \
             this node's pages",
        ],
    );
}

#[test]
fn a_filter_mode_that_is_named_has_what_it_needs() {
    let filter = |lines: &str| {
        format!("{MINIMAL}[listen]\nprefixes = [\"198.51.100.0/24\"]\n[filter]\n{lines}\n")
    };
    for mode in ["xdp", "xdp-generic", "tcx"] {
        let lines = problems(&filter(&format!("mode = {mode:?}")));
        assert_eq!(lines, ["7:8: filter.mode: needs interfaces to attach to"], "{mode}");
        let text = filter(&format!("mode = {mode:?}\ninterfaces = [\"eth0\"]"));
        assert_eq!(accepted(&text).filter.interfaces, ["eth0"]);
    }
    for mode in ["auto", "off", "cgroup"] {
        accepted(&filter(&format!("mode = {mode:?}")));
    }
    assert_eq!(
        problems(&filter("interfaces = [\"eth0\", \"eth/1\", \"eth0\"]")),
        [
            "7:23: filter.interfaces[1]: must be the name of a network interface, such as \"eth0\"",
            "7:32: filter.interfaces[2]: is listed twice",
        ]
    );
    let text = filter(
        "mode = \"tcx\"\ninterfaces = [\"eth0\"]\ncgroup = \"/sys/fs/cgroup/x\"\n\
         pins = \"/run/bpf\"\ndry_run = true\nsample_drops_every = 0",
    );
    let expected = Filter {
        mode: FilterMode::Tcx,
        interfaces: vec!["eth0".to_owned()],
        cgroup: Some("/sys/fs/cgroup/x".into()),
        pins: "/run/bpf".into(),
        dry_run: true,
        sample_drops_every: 0,
    };
    assert_eq!(accepted(&text).filter, expected);
}

#[test]
fn every_key_of_the_filter_is_documented() {
    for key in fields(&Filter::default()) {
        let written = [format!("\n{key} = "), format!("\n#{key} = ")];
        assert!(written.iter().any(|line| DOCUMENTED.contains(line)), "{key} is not documented");
    }
}

#[test]
fn a_mesh_has_every_part_and_each_peer_once() {
    let mesh = "[mesh]\naddress = \"10.0.0.1:7443\"\ncertificate = \"m.pem\"\nkey = \"m.key\"\n";
    let peer = |id: &str, address: &str| {
        format!("[[mesh.peers]]\nid = \"{id}\"\nregion = \"fra\"\naddress = \"{address}\"\n")
    };
    let text = [
        MINIMAL.to_owned(),
        mesh.to_owned(),
        peer("fra-1", "10.0.0.2:7443"),
        peer("fra-1", "10.0.0.3:7443"),
        peer("ams-1", "10.0.0.4:7443"),
        peer("fra-2", "10.0.0.1:7443"),
        peer("fra-3", "10.0.0.2:7443"),
        peer("fra-4", "0.0.0.0:7443"),
        peer("fra 5", "10.0.0.5:0"),
    ]
    .concat();
    assert_eq!(
        problems(&text),
        [
            "4:1: mesh.ca: is missing",
            "13:6: mesh.peers[1].id: \"fra-1\" is listed twice",
            "17:6: mesh.peers[2].id: is this node itself",
            "23:11: mesh.peers[3].address: is this node's own address",
            "27:11: mesh.peers[4].address: is the address of \"fra-1\" already",
            "31:11: mesh.peers[5].address: must be an address that this node can connect to",
            "33:6: mesh.peers[6].id: must be 1 to 64 of A-Z, a-z, 0-9, -, _ and .",
            "35:11: mesh.peers[6].address: must have a port other than 0",
        ]
    );
}

#[test]
fn problems_of_all_sections_are_listed_together() {
    let text = "[node]\nregoin = \"ams\"\n[timeouts]\ndrain = \"long\"\n[surprise]\n";
    assert_eq!(
        problems(text),
        [
            "1:1: node.id: is missing",
            "1:1: node.region: is missing",
            "2:1: node.regoin: unknown key \"regoin\"; did you mean \"region\"?",
            "4:9: timeouts.drain: must be a duration from \"0s\" to \"24h\", not \"long\"",
            "5:2: surprise: unknown key \"surprise\"",
        ]
    );
}

#[test]
fn an_empty_file_misses_what_is_required() {
    assert_eq!(problems(""), ["1:1: node.id: is missing", "1:1: node.region: is missing"]);
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("edge.toml");
    let problems = read(&missing).expect_err("there is no file");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("edge.toml: cannot be read: No such file"));
    std::fs::write(&missing, vec![b'#'; 1024 * 1024 + 1]).expect("the folder is ours");
    let problems = read(&missing).expect_err("it is too large");
    assert!(problems[0].to_string().ends_with("it is larger than 1 MiB"), "{problems:?}");
    std::fs::write(&missing, MINIMAL).expect("the folder is ours");
    assert!(read(&missing).is_ok());
}

#[test]
fn a_prefix_is_an_address_and_a_length() {
    for good in ["198.51.100.0/24", "0.0.0.0/0", "10.1.2.3/32", "2001:db8::/32", "::1/128", "::/0"]
    {
        assert!(values::prefix(good).is_ok(), "{good}");
    }
    for bad in
        ["198.51.100.0", "198.51.100.0/33", "198.51.100.1/24", "::/129", "::1/64", "/8", "a/8"]
    {
        assert!(values::prefix(bad).is_err(), "{bad}");
    }
}

const ANNOUNCE: &str = "[announce]\n[announce.probe]\naddresses = [\"198.51.100.1:443\"]\n\
    server_name = \"health.test\"\n";

#[test]
fn what_is_documented_of_the_announcer_is_its_default() {
    use crate::announce::speaker::{CommandConfig, Config as Speaker};

    let default = accepted(&format!("{MINIMAL}{ANNOUNCE}")).announce.expect("it is there");
    let section = DOCUMENTED.split_once("#[announce]").expect("it is documented").1;
    let lines = section.lines().filter_map(|line| line.strip_prefix('#'));
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with(' ')).collect();
    let written = format!("{MINIMAL}[announce]\n{}", lines.join("\n"));
    let mut announce = accepted(&written).announce.expect("it is there");
    let words = vec!["/usr/local/sbin/tell-the-router".to_owned()];
    let timeout = Duration::from_secs(5);
    assert_eq!(announce.speaker, Speaker::Command(CommandConfig { words, timeout }));
    let without = written.lines().filter(|line| !line.starts_with("command"));
    let without: Vec<&str> = without.collect();
    announce = accepted(&without.join("\n")).announce.expect("it is there");
    announce.probe = default.probe.clone();
    assert_eq!(announce, default);
}

#[test]
fn an_announcer_without_a_probe_or_with_nonsense_is_refused() {
    let lines = problems(&format!("{MINIMAL}[announce]\n"));
    assert!(lines.iter().any(|line| line.contains("announce.probe.addresses: is missing")));
    assert!(lines.iter().any(|line| line.contains("announce.probe.server_name: is missing")));
    let with = |line: &str| {
        let text = ANNOUNCE.replacen("[announce]\n", &format!("[announce]\n{line}\n"), 1);
        problems(&format!("{MINIMAL}{text}"))
    };
    for line in [
        "fall = 0",
        "timeout = \"6s\"",
        "protocols = []",
        "protocols = [\"x; disable all\"]",
        "protocols = [\"4\"]",
        "command = []",
        "command_timeout = \"1m\"",
        "settle = \"10m\"",
        "peers_min = -1",
        "nonsense = 1",
    ] {
        assert_eq!(with(line).len(), 1, "{line}: {:?}", with(line));
    }
    let probe = |line: &str| problems(&format!("{MINIMAL}{ANNOUNCE}{line}\n"));
    for line in ["path = \"health\"", "status = 99", "path = \"/a b\""] {
        assert_eq!(probe(line).len(), 1, "{line}");
    }
}

#[test]
fn connections_are_told_of_a_drain_before_they_are_cut() {
    let config = accepted(&format!("{MINIMAL}[timeouts]\ndrain = \"1s\"\n"));
    assert_eq!(config.timeouts.drain_spread, Duration::from_millis(500));
    let lines = problems(&format!("{MINIMAL}[timeouts]\ndrain = \"1s\"\ndrain_spread = \"2s\"\n"));
    assert!(lines.len() == 1 && lines[0].contains("timeouts.drain_spread"), "{lines:?}");
}

#[test]
fn a_successor_does_not_spend_its_time_on_connections() {
    let config = accepted(&format!("{MINIMAL}[timeouts]\nhandoff = \"1s\"\n"));
    assert_eq!(config.timeouts.handoff_warm, Duration::from_millis(500));
    let lines =
        problems(&format!("{MINIMAL}[timeouts]\nhandoff = \"1s\"\nhandoff_warm = \"1s\"\n"));
    assert!(lines.len() == 1 && lines[0].contains("timeouts.handoff_warm"), "{lines:?}");
}
