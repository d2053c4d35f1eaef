use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn commands_are_understood() {
    let check = |line: &str, understood: bool| {
        let parsed = Arguments::try_parse_from(line.split(' '));
        assert_eq!(parsed.is_ok(), understood, "{line}");
    };
    check("ferrule run --config edge.toml", true);
    check("ferrule run --config edge.toml --log debug,h2=warn --log-format json", true);
    check("ferrule run --config edge.toml --until-stdin-closes", true);
    check("ferrule run --config edge.toml --init", true);
    check("ferrule run", false);
    check("ferrule run --config edge.toml --log-format xml", false);
    check("ferrule check --config edge.toml", true);
    check("ferrule check", false);
    check("ferrule demo", true);
    check("ferrule demo --directory demo", true);
    check("ferrule status", true);
    check("ferrule status --socket /run/x --json", true);
    check("ferrule status --config edge.toml", true);
    check("ferrule status --config edge.toml --socket /run/x", false);
    check("ferrule status --ready --socket /run/x", true);
    check("ferrule completions fish", true);
    check("ferrule completions tcsh", false);
    check("ferrule app list --json", true);
    check("ferrule instance list", true);
    check("ferrule cert list", true);
    check("ferrule filter show", true);
    check("ferrule filter show --json --config edge.toml", true);
    check("ferrule filter show --pins /sys/fs/bpf/x --socket /run/x", true);
    check("ferrule filter show --pins /sys/fs/bpf/x --config edge.toml", false);
    check("ferrule filter detach --force", true);
    check("ferrule filter", false);
    check("ferrule announce --config edge.toml", true);
    check("ferrule announce", false);
    check("ferrule announce status", true);
    check("ferrule announce status --json --socket /run/x", true);
    check("ferrule announce status --socket /run/x --config edge.toml", false);
    check("ferrule announce --config edge.toml status", false);
    check("ferrule app", false);
    check("ferrule trace on --app hello --why test", true);
    check("ferrule trace on --client 198.51.100.0/24 --percent 0.5 --ttl 1h --why test", true);
    check("ferrule trace on --path / --uses 5 --bytes 1MiB --level normal --why test", true);
    check("ferrule trace on --app hello", false);
    check("ferrule trace on --app hello --why test --ttl 61m", false);
    check("ferrule trace on --app hello --why test --ttl 10", false);
    check("ferrule trace on --app hello --why test --level wide", false);
    check("ferrule trace on --app hello --why test --percent 0", false);
    check("ferrule trace off 7 --json", true);
    check("ferrule trace off --all", true);
    check("ferrule trace off", false);
    check("ferrule trace off 7 --all", false);
    check("ferrule trace off seven", false);
    check("ferrule trace list --audit --json", true);
    check("ferrule trace token --app hello --ttl 15m --uses 3 --report", true);
    check("ferrule trace token --config edge.toml", true);
    check("ferrule trace token --ttl 16m", false);
    check("ferrule trace show 0123456789abcdef0123456789abcdef --json", true);
    check("ferrule trace show 0123456789abcdef", false);
    check("ferrule trace show 00000000000000000000000000000000", false);
    check("ferrule run --config edge.toml --take-over", true);
    check("ferrule upgrade", true);
    check("ferrule upgrade --binary ./ferrule --json --config edge.toml", true);
    check("ferrule downgrade", false);
}

#[test]
fn the_socket_is_named_by_path_or_configuration_or_default() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("edge.toml");
    let text = "[node]\nid = \"a\"\nregion = \"b\"\n[admin]\nsocket = \"here.sock\"\n";
    std::fs::write(&file, text).expect("the folder is ours");
    let node = |config, socket| Node { config, socket, json: false };
    let socket = |node: Node| node.socket().expect("the configuration is right");
    assert_eq!(socket(node(None, None)), Path::new("/run/ferrule/admin.sock"));
    assert_eq!(socket(node(None, Some("/run/x".into()))), Path::new("/run/x"));
    assert_eq!(socket(node(Some(file), None)), folder.path().join("here.sock"));
    let missing = node(Some(folder.path().join("none.toml")), None).socket();
    assert_eq!(missing.expect_err("there is no such file").exit, Exit::Usage);
}
