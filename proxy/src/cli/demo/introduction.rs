//! What the demo prints once everything runs: comments and commands, so that all of it can be
//! pasted into bash.

use std::path::Path;

use super::plan::{ADMIN, APPS, App, HTTP, HTTPS, NODES, Place, TCP};

/// A gRPC message of 12 bytes, not compressed: field 1, a string of 10.
const GRPC_MESSAGE: &str = r"\0\0\0\0\14\12\12hello you\n";

/// A text of 10 bytes and a wish to close, masked with zeros.
const WEBSOCKET_FRAMES: &str = r"\201\212\0\0\0\0hello edge\210\202\0\0\0\0\3\350";

/// Names the files in `folder` and the program that runs.
pub(super) fn introduction(folder: &Path, program: &Path) -> String {
    let [ams, sin] = &NODES;
    let [hello, far, grpc, chat, _echo] = &APPS;
    let ca = quoted(&folder.join("ca.pem"));
    let program = quoted(program);
    let status = quoted(&folder.join(ams.node).join("edge.toml"));
    let hello_ams = curl(hello, HTTPS, ams);
    let hello_sin = curl(hello, HTTPS, sin);
    let hello_clear = curl(hello, HTTP, ams);
    let [far, grpc, chat] = [far, grpc, chat].map(|app| curl(app, HTTPS, ams));
    format!(
        r"# Two nodes run: {ams_node} on {ams_address}, {sin_node} on {sin_address}.
# Paste a line, or all of them, into bash.

# The nearest instance answers:
curl --cacert {ca} {hello_ams}/
curl --cacert {ca} {hello_sin}/
# The same in cleartext:
curl {hello_clear}/

# The rest runs in {sin_region} only. Asked for in {ams_region}, it is reached over the mesh. HTTP:
curl --cacert {ca} {far}/
# gRPC; `grpc-status` at the end is a trailer:
printf '{GRPC_MESSAGE}' | curl -sSi --http2 -o - --cacert {ca} -H 'content-type: application/grpc' -H 'te: trailers' --data-binary @- {grpc}/demo.Echo/Say
# WebSocket: two frames go out, text and close, and come back:
printf '{WEBSOCKET_FRAMES}' | curl -sSiN --http1.1 --cacert {ca} -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Transfer-Encoding:' -H 'Expect:' -X GET -T - {chat}/; echo
# Raw TCP:
{{ echo hello >&3; head -n 2 <&3; }} 3<>/dev/tcp/{ams_address}/{TCP}

# The nodes about themselves, also at http://{ams_address}:{ADMIN}/ and http://{sin_address}:{ADMIN}/:
{program} status --config {status}
{program} instance list --config {status}
# Apps are in {apps}; change one and ask again. Logs are in {log} and {other_log}.
# Ctrl-C stops everything.
",
        ams_node = ams.node,
        ams_region = ams.region,
        ams_address = ams.address,
        sin_node = sin.node,
        sin_region = sin.region,
        sin_address = sin.address,
        apps = folder.join("apps").display(),
        log = folder.join(ams.node).join("log").display(),
        other_log = folder.join(sin.node).join("log").display(),
    )
}

/// What leads `curl` to `app` at `place`: everything but the path.
fn curl(app: &App, port: u16, place: &Place) -> String {
    let (name, address) = (app.hostname(), place.address);
    let scheme = if port == HTTPS { "https" } else { "http" };
    format!("--resolve {name}:{port}:{address} {scheme}://{name}:{port}")
}

/// A path as one word of bash.
fn quoted(path: &Path) -> String {
    let path = path.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if path.bytes().all(plain) {
        path.into_owned()
    } else {
        format!("'{}'", path.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_comment_or_a_command() {
        let text = introduction(Path::new("/tmp/demo"), Path::new("/usr/bin/ferrule"));
        for line in text.lines().filter(|line| !line.is_empty()) {
            let word = line.split(' ').next().expect("split gives one at least");
            assert!(["#", "curl", "printf", "{", "/usr/bin/ferrule"].contains(&word), "{line}");
        }
    }

    #[test]
    fn a_path_is_one_word_of_bash() {
        let check = |path: &str, expected: &str| assert_eq!(quoted(Path::new(path)), expected);
        check("/tmp/ferrule-demo-1/ca.pem", "/tmp/ferrule-demo-1/ca.pem");
        check("/tmp/a demo", "'/tmp/a demo'");
        check("/tmp/it's $HOME", r"'/tmp/it'\''s $HOME'");
    }
}
