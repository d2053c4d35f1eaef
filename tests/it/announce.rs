//! The anycast gate, against a BIRD of its own and a node that is as ill as a test wants; and, in
//! `announce/lab.rs`, on a small internet.

mod lab;

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::announcer::{Announcer, FakeNode};
use tests::certs::Certs;
use tests::lab::Bird;
use tests::need;
use tests::wait;

/// A node, BIRD and an announcer between them, which looks ten times a second.
struct Gate {
    announcer: Announcer,
    node: FakeNode,
    bird: Bird,
    folder: TempDir,
    certs: Certs,
}

/// As many looks in a row must fail.
const FALL: &str = "4";

/// BIRD's side, without anybody to announce to: what is up is what would be announced.
const BIRD: &str = "log stderr all;\nrouter id 10.0.0.1;\ninclude \"INCLUDE\";\n\
    protocol device { }\n\
    protocol static anycast4 { disabled FERRULE_WITHDRAWN; ipv4; route 198.51.100.0/24 unreachable; }\n\
    protocol static anycast6 { disabled FERRULE_WITHDRAWN; ipv6; route 2001:db8:1::/48 unreachable; }\n\
    filter probe { if FERRULE_DRAIN then reject; accept; }\n";

// === impl Gate ===

impl Gate {
    /// All three, with this said of `[announce]` too; the node is not announced yet.
    fn start(more: &str) -> Option<Self> {
        need::tool("bird")?;
        let folder = TempDir::with_prefix("ferrule-announce-").unwrap();
        let include = folder.path().join("announced.conf");
        fs::write(&include, "define FERRULE_WITHDRAWN = 1;\ndefine FERRULE_DRAIN = false;\n")
            .unwrap();
        let configuration = BIRD.replace("INCLUDE", &include.display().to_string());
        let bird = Bird::start("BIRD", &[], &configuration);
        let certs = Certs::new();
        let node = FakeNode::start(&folder.path().join("admin.sock"), &certs);
        wait::until("the node says how it is", || folder.path().join("admin.sock").exists());
        let config = folder.path().join("edge.toml");
        let more = &format!("bird = {:?}\n{more}", bird.socket());
        let text = config_text(&node, &certs, &rules(more)) + &peer(&node.address().to_string());
        fs::write(&config, text).unwrap();
        let announcer = Announcer::start("announcer", &[], &config);
        Some(Self { announcer, node, bird, folder, certs })
    }

    /// The same, once the node is announced.
    fn announced(more: &str) -> Option<Self> {
        let gate = Self::start(more)?;
        gate.announcer.comes_to("announced");
        Some(gate)
    }

    /// What BIRD has in force: up or not, by family; and whether as a last resort.
    fn in_force(&self) -> (bool, bool, bool) {
        let drains = self.bird.constant("FERRULE_DRAIN") == "TRUE";
        (self.bird.is_up("anycast4"), self.bird.is_up("anycast6"), drains)
    }

    /// Everything that was ever done to BIRD, as it tells itself.
    fn done_to_bird(&self) -> usize {
        let log = self.bird.log();
        let done = ["Enabling", "Disabling", "Reconfiguring", "Restarting"];
        log.lines().filter(|line| done.iter().any(|done| line.contains(done))).count()
    }
}

/// A configuration with these lines in `[announce]`.
fn config_text(node: &FakeNode, certs: &Certs, announce: &str) -> String {
    format!(
        "[node]\nid = \"a\"\nregion = \"ams\"\n[admin]\nsocket = \"admin.sock\"\n\
         [announce]\n{announce}\n\
         [announce.probe]\naddresses = [\"{}\"]\nserver_name = \"health.test\"\nca = {:?}\n",
        node.address(),
        certs.ca(),
    )
}

/// What every one of these announcers is told, but for what is said in `more`.
fn rules(more: &str) -> String {
    let usual = [
        ("bird_include", "\"announced.conf\""),
        ("socket", "\"announce.sock\""),
        ("interval", "\"100ms\""),
        // On a busy machine it is the machine that is late, not the node.
        ("timeout", "\"5s\""),
        ("rise", "\"500ms\""),
        ("fall", FALL),
        ("settle", "\"500ms\""),
        ("drain_max", "\"5s\""),
    ];
    let said = |key: &str| more.lines().any(|line| line.starts_with(&format!("{key} ")));
    let usual = usual.iter().filter(|(key, _)| !said(key));
    usual.map(|(key, value)| format!("{key} = {value}\n")).collect::<String>() + more
}

/// A mesh with one other node, of which it matters only whether it takes connections.
fn peer(address: &str) -> String {
    format!(
        "[mesh]\naddress = \"127.0.0.1:7443\"\ncertificate = \"x\"\nkey = \"x\"\nca = \"x\"\n\
         [[mesh.peers]]\nid = \"b\"\nregion = \"fra\"\naddress = \"{address}\"\n"
    )
}

/// What a node says that an operator drains, or that is being stopped.
fn drained(by: &str, left: u64) -> Value {
    let drain =
        json!({ "by": by, "since": 1.0, "seconds": 1.0, "connections": left, "requests": 0 });
    json!({ "draining": true, "ready": false, "drain": drain, "connections": left })
}

const ANNOUNCED: (bool, bool, bool) = (true, true, false);
const DRAINING: (bool, bool, bool) = (true, true, true);

fn withdrawn((v4, v6, _): (bool, bool, bool)) -> bool {
    !v4 && !v6
}

#[test]
fn a_node_is_announced_while_it_serves_and_withdrawn_when_it_does_not() {
    let Some(gate) = Gate::start("") else { return };
    assert!(withdrawn(gate.in_force()), "not before it has served for a while");
    gate.announcer.comes_to("announced");
    assert_eq!(gate.in_force(), ANNOUNCED);
    gate.node.refuses();
    gate.announcer.comes_to("withdrawn");
    assert!(withdrawn(gate.in_force()));
    gate.node.says(json!({}));
    gate.announcer.comes_to("announced");
    assert_eq!(gate.in_force(), ANNOUNCED);
    let log = gate.announcer.log();
    assert!(log.contains("from=announced to=withdrawn"), "{log}");
    assert!(log.contains("failed 4 times in a row: the node does not say how it is"), "{log}");
}

#[test]
fn whatever_is_wrong_with_a_node_withdraws_it() {
    let Some(gate) = Gate::announced("inventory_age_max = \"1m\"") else { return };
    let faults = [
        ("not_ready", json!({ "ready": false, "not_ready_reason": "starting" })),
        ("pressure", json!({ "pressure": { "level": "refuse" } })),
        ("stale", json!({ "inventory_age_seconds": 61.0 })),
        ("hangs", json!({ "hangs_for_seconds": 12.0, "draining": true })),
    ];
    for (kind, said) in faults {
        gate.node.says(said);
        gate.announcer.comes_to("withdrawn");
        assert!(withdrawn(gate.in_force()), "{kind}");
        assert_eq!(gate.announcer.status()["sight"], kind);
        gate.node.says(json!({}));
        gate.announcer.comes_to("announced");
    }
    for answer in [Some(503), None] {
        gate.node.answers(answer);
        gate.announcer.comes_to("withdrawn");
        assert!(withdrawn(gate.in_force()), "{answer:?}");
        let status = gate.announcer.status();
        assert_eq!(status["sight"], "probe");
        assert!(status["probes"][0]["error"].is_string(), "{status}");
        gate.node.answers(Some(200));
        gate.announcer.comes_to("announced");
    }
}

#[test]
fn a_certificate_of_nobody_is_no_answer_unless_nobody_asks() {
    let Some(mut gate) = Gate::start("") else { return };
    let config = gate.folder.path().join("edge.toml");
    let text = fs::read_to_string(&config).unwrap();
    let stranger = Certs::new();
    let own = format!("{:?}", gate.certs.ca());
    fs::write(&config, text.replace(&own, &format!("{:?}", stranger.ca()))).unwrap();
    gate.announcer.kill();
    gate.announcer.start_again();
    gate.announcer.looks(10);
    let status = gate.announcer.status();
    assert_eq!((&status["state"], &status["sight"]), (&json!("withdrawn"), &json!("probe")));
    fs::write(&config, text.replace(&format!("ca = {own}"), "")).unwrap();
    gate.announcer.kill();
    gate.announcer.start_again();
    gate.announcer.comes_to("announced");
}

#[test]
fn a_drain_is_a_last_resort_first_and_a_withdrawal_last() {
    let Some(gate) = Gate::announced("") else { return };
    gate.node.says(drained("operator", 3));
    gate.announcer.comes_to("draining");
    assert_eq!(gate.in_force(), DRAINING);
    gate.announcer.looks(10);
    assert_eq!(gate.in_force(), DRAINING, "while connections are left");
    gate.node.says(drained("operator", 0));
    gate.announcer.comes_to("withdrawn");
    assert!(withdrawn(gate.in_force()));
    gate.node.says(json!({}));
    gate.announcer.comes_to("announced");
    assert_eq!(gate.in_force(), ANNOUNCED, "without what the drain added");
}

#[test]
fn a_drain_that_does_not_end_is_ended() {
    let Some(gate) = Gate::announced("settle = \"100ms\"\ndrain_max = \"1s\"") else { return };
    gate.node.says(drained("operator", 3));
    gate.announcer.comes_to("withdrawn");
    let status = gate.announcer.status();
    assert!(status["reason"].as_str().unwrap().contains("has drained for"), "{status}");
}

#[test]
fn an_undrained_node_is_announced_as_before() {
    let Some(gate) = Gate::announced("") else { return };
    gate.node.says(drained("operator", 3));
    gate.announcer.comes_to("draining");
    gate.node.says(json!({}));
    gate.announcer.comes_to("announced");
    assert_eq!(gate.in_force(), ANNOUNCED);
}

#[test]
fn an_upgrade_or_a_restart_shorter_than_the_fall_never_touches_bird() {
    let Some(gate) = Gate::announced("fall = 10") else { return };
    let before = gate.done_to_bird();
    for generation in 2..5 {
        // An answer of the process that goes, nobody at the socket, one that is not ready yet.
        gate.node.says(drained("stop", 900));
        gate.announcer.looks(1);
        gate.node.refuses();
        gate.announcer.looks(1);
        let not_ready =
            json!({ "ready": false, "pid": 4711 + generation, "generation": generation });
        gate.node.says(not_ready);
        gate.announcer.looks(1);
        gate.node.says(json!({ "pid": 4711 + generation, "generation": generation }));
        gate.announcer.looks(3);
    }
    let status = gate.announcer.status();
    assert_eq!(gate.done_to_bird(), before, "{}", gate.bird.log());
    assert!(
        status["totals"]["faults"].as_u64() > Some(3),
        "the control: it did see them: {status}"
    );
    assert_eq!(status["node"]["generation"], 4);
    gate.node.refuses();
    gate.announcer.comes_to("withdrawn");
    assert!(gate.done_to_bird() > before, "the control: what is longer touches it");
}

#[test]
fn nothing_changes_when_the_announcer_dies_or_comes_back() {
    let Some(mut gate) = Gate::announced("") else { return };
    let before = gate.done_to_bird();
    gate.announcer.stop();
    assert_eq!(gate.in_force(), ANNOUNCED);
    gate.announcer.start_again();
    gate.announcer.looks(5);
    gate.announcer.kill();
    assert_eq!(gate.in_force(), ANNOUNCED);
    gate.announcer.start_again();
    let status = gate.announcer.status();
    assert_eq!(
        (&status["state"], &status["reason"]),
        (&json!("announced"), &json!("found in force"))
    );
    gate.announcer.looks(10);
    assert_eq!(gate.done_to_bird(), before, "{}", gate.bird.log());
}

#[test]
fn an_announcer_goes_on_with_a_drain_it_did_not_begin() {
    let Some(mut gate) = Gate::announced("") else { return };
    gate.node.says(drained("operator", 3));
    gate.announcer.comes_to("draining");
    let before = gate.done_to_bird();
    gate.announcer.kill();
    gate.announcer.start_again();
    gate.announcer.looks(10);
    assert_eq!((gate.in_force(), gate.done_to_bird()), (DRAINING, before));
    gate.node.says(drained("operator", 0));
    gate.announcer.comes_to("withdrawn");
}

#[test]
fn what_is_in_force_outlives_bird_and_a_configure_by_hand() {
    let Some(mut gate) = Gate::announced("") else { return };
    gate.bird.kill();
    wait::until("the announcer says that BIRD is gone", || {
        gate.announcer.status()["speaker"]["error"].is_string()
    });
    gate.bird.start_again();
    assert_eq!(gate.in_force(), ANNOUNCED, "before the announcer could say anything");
    wait::until("the announcer finds it again", || {
        gate.announcer.status()["speaker"]["error"].is_null()
    });
    gate.node.refuses();
    gate.announcer.comes_to("withdrawn");
    gate.bird.ask("configure");
    gate.announcer.looks(2);
    assert!(withdrawn(gate.in_force()));
    assert!(!gate.bird.log().lines().any(|line| line.contains("Enabling")), "{}", gate.bird.log());
    let log = gate.announcer.log();
    assert!(
        log.contains("cannot be told what to announce") && log.contains("answers again"),
        "{log}"
    );
}

#[test]
fn a_configuration_that_bird_refuses_is_said_and_withdrawing_works_all_the_same() {
    let Some(gate) = Gate::announced("settle = \"100ms\"\ndrain_max = \"2s\"") else { return };
    let path = gate.bird.configuration();
    let sound = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{sound}\nhalf a line")).unwrap();
    gate.node.says(drained("operator", 3));
    wait::until("the refusal is said", || {
        let error = gate.announcer.status()["speaker"]["error"].clone();
        error.as_str().is_some_and(|error| error.contains("8002"))
    });
    assert_eq!(gate.in_force(), ANNOUNCED);
    gate.announcer.comes_to("withdrawn");
    assert!(withdrawn(gate.in_force()));
}

#[test]
fn whoever_meddles_with_bird_is_corrected() {
    let Some(gate) = Gate::announced("") else { return };
    gate.bird.ask("disable anycast6");
    wait::until("both are announced again", || gate.in_force() == ANNOUNCED);
}

#[test]
fn the_last_announcer_stays_and_says_so_loudly() {
    let Some(gate) = Gate::announced("") else { return };
    let before = gate.done_to_bird();
    let other =
        |reachable: bool, draining: bool| json!({ "reachable": reachable, "draining": draining });
    let alone = json!([other(false, false), other(true, true)]);
    gate.node.says(json!({ "peers": alone, "ready": false, "not_ready_reason": "starting" }));
    wait::until("it is held", || gate.announcer.status()["held"] == true);
    gate.announcer.looks(10);
    assert_eq!((gate.in_force(), gate.done_to_bird()), (ANNOUNCED, before));
    let log = gate.announcer.log();
    assert_eq!(log.matches("NOT withdrawn").count(), 1, "{log}");
    let shown = gate.announcer.command(&[]).stdout;
    assert!(shown.contains("HELD"), "{shown}");
    let not_alone = json!([other(false, false), other(true, false)]);
    gate.node.says(json!({ "peers": not_alone, "ready": false, "not_ready_reason": "starting" }));
    gate.announcer.comes_to("withdrawn");
}

#[test]
fn a_node_that_says_nothing_cannot_be_the_last_while_its_peers_take_connections() {
    let Some(mut gate) = Gate::announced("") else { return };
    let config = gate.folder.path().join("edge.toml");
    let text = fs::read_to_string(&config).unwrap();
    let there = gate.node.address().to_string();
    let (rest, _) = text.split_once("[mesh]").unwrap();
    fs::write(&config, rest.to_owned() + &peer("127.0.0.1:1")).unwrap();
    gate.node.refuses();
    gate.announcer.kill();
    gate.announcer.start_again();
    wait::until("it is held", || gate.announcer.status()["held"] == true);
    assert_eq!(gate.in_force(), ANNOUNCED);
    fs::write(&config, rest.to_owned() + &peer(&there)).unwrap();
    gate.announcer.kill();
    gate.announcer.start_again();
    gate.announcer.comes_to("withdrawn");
}

#[test]
fn any_command_can_take_the_place_of_bird() {
    let folder = TempDir::with_prefix("ferrule-announce-").unwrap();
    let certs = Certs::new();
    let node = FakeNode::start(&folder.path().join("admin.sock"), &certs);
    wait::until("the node says how it is", || folder.path().join("admin.sock").exists());
    let (told, refusal) = (folder.path().join("told"), folder.path().join("refuse"));
    let script = format!("test ! -e {} && echo $1 >> {}", refusal.display(), told.display());
    let command = format!("command = [\"sh\", \"-c\", {script:?}, \"sh\"]");
    let config = folder.path().join("edge.toml");
    fs::write(&config, config_text(&node, &certs, &rules(&command))).unwrap();
    let announcer = Announcer::start("announcer", &[], &config);
    let said = |told: &PathBuf| fs::read_to_string(told).unwrap_or_default();
    announcer.comes_to("announced");
    node.says(drained("operator", 3));
    announcer.comes_to("draining");
    node.says(drained("operator", 0));
    announcer.comes_to("withdrawn");
    assert_eq!(said(&told), "announce\ndrain\nwithdraw\n");
    fs::write(&refusal, "").unwrap();
    node.says(json!({}));
    wait::until("the failure is said", || announcer.status()["speaker"]["error"].is_string());
    fs::remove_file(&refusal).unwrap();
    announcer.comes_to("announced");
    assert_eq!(said(&told), "announce\ndrain\nwithdraw\nannounce\n");
}

#[test]
fn a_command_that_hangs_is_killed_and_tried_again() {
    let folder = TempDir::with_prefix("ferrule-announce-").unwrap();
    let certs = Certs::new();
    let node = FakeNode::start(&folder.path().join("admin.sock"), &certs);
    let config = folder.path().join("edge.toml");
    // `sleep 1000 announce` would be a mistake; `sh` takes the action for its own name.
    let command = "command = [\"sh\", \"-c\", \"exec sleep 1000\"]\ncommand_timeout = \"200ms\"";
    fs::write(&config, config_text(&node, &certs, &rules(command))).unwrap();
    let announcer = Announcer::start("announcer", &[], &config);
    wait::until("it was tried twice", || {
        announcer.status()["totals"]["speaker_errors"].as_u64() >= Some(2)
    });
    let error = announcer.status()["speaker"]["error"].clone();
    assert!(error.as_str().unwrap().contains("did not end within 0.2 s"), "{error}");
}

#[test]
fn there_is_one_announcer_for_a_node() {
    let Some(gate) = Gate::announced("") else { return };
    let config = gate.folder.path().join("edge.toml");
    let mut command = std::process::Command::new(tests::edge::binary());
    let second = tests::process::run(command.args(["announce", "--config"]).arg(&config));
    assert_eq!(second.code, 69, "{}", second.stderr);
    assert!(second.stderr.contains("another announcer"), "{}", second.stderr);
    assert_eq!(gate.announcer.status()["state"], "announced");
}

#[test]
fn the_status_is_for_people_and_for_programs() {
    let Some(mut gate) = Gate::announced("") else { return };
    let shown = gate.announcer.command(&[]);
    for line in
        ["state      announced for ", "in force   bird: announced\n", "sight      serving\n"]
    {
        assert!(shown.stdout.contains(line), "{}", shown.stdout);
    }
    assert!(shown.stdout.contains("PROBE") && shown.stdout.contains("as expected"));
    let status: Value = serde_json::from_str(&gate.announcer.command(&["--json"]).stdout).unwrap();
    assert_eq!(status["node"]["pid"], 4711);
    assert_eq!(status["totals"]["changes"], 1);
    gate.announcer.stop();
    let nobody = gate.announcer.command(&[]);
    assert_eq!(nobody.code, 69);
    assert!(nobody.stderr.contains("no announcer answers"), "{}", nobody.stderr);
}

/// What is installed by hand from `config/` and by default in `edge.toml` has to name the same things.
#[test]
fn the_example_of_bird_is_what_the_announcer_expects_by_default() {
    let read = |path: &str| fs::read_to_string(need::workspace().join(path)).unwrap();
    let (bird, edge) = (read("config/bird/bird.conf"), read("config/edge.toml"));
    let default = |key: &str| {
        let line = edge.lines().find(|line| line.starts_with(&format!("#{key} = ")));
        line.unwrap().split_once(" = ").unwrap().1.trim_matches('"').to_owned()
    };
    let include = default("bird_include");
    assert!(bird.contains(&format!("include {include:?};")), "{include}");
    for protocol in default("protocols").trim_matches(['[', ']']).split(", ") {
        let begin = format!(
            "protocol static {} {{\n  disabled FERRULE_WITHDRAWN;",
            protocol.trim_matches('"')
        );
        assert!(bird.contains(&begin), "{begin}");
    }
    let at_boot = read("config/bird/ferrule-tmpfiles.conf");
    let folder = std::path::Path::new(&include).parent().unwrap().display().to_string();
    assert!(at_boot.contains(&format!("d {folder} 0755 ferrule")), "{at_boot}");
    let withdrawn = "define FERRULE_WITHDRAWN = 1; define FERRULE_DRAIN = false;";
    assert!(
        at_boot.contains(&format!("f {include} 0644 ferrule ferrule - {withdrawn}")),
        "{at_boot}"
    );
    let unit = read("config/systemd/ferrule-announce.service");
    assert!(unit.contains("RuntimeDirectory=ferrule-announce\n"), "{unit}");
    assert!(unit.contains("RuntimeDirectoryPreserve=yes\n"), "{unit}");
}
