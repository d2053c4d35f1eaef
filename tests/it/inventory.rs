//! The inventory as an operator changes it: seen within a second, one app at a time, and never
//! worse for a mistake.

use std::time::Duration;

use tests::app::App;
use tests::client::WebSocket;
use tests::edge::Edge;
use tests::instance::{Echo, websocket_echo};
use tests::port::free_address;
use tests::wait;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_new_app_is_served_within_a_second() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    edge.get("late.test", "/").assert_error(404, "PE01");
    edge.write_app(&App::new("late").instance(echo.address()));
    wait::within(SECOND, "the new app is served", || edge.get("late.test", "/").status == 200);
}

#[test]
fn an_app_that_goes_is_forgotten_within_a_second() {
    let echo = Echo::http1();
    let edge = Edge::with(["hello", "gone"].map(|name| App::new(name).instance(echo.address())));
    assert_eq!(edge.get("gone.test", "/").status, 200);
    edge.remove_app("gone");
    wait::within(SECOND, "the app is gone", || edge.get("gone.test", "/").status == 404);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    wait::until("its series are gone too", || {
        edge.metrics().sum_with("ferrule_requests_total", &[("app", "gone")]) == 0.0
    });
}

#[test]
fn an_instance_that_moves_is_followed_within_a_second() {
    let [old, new] = [Echo::http1(), Echo::http1()];
    let edge = Edge::with([App::new("hello").instance(old.address())]);
    let mut client = edge.connect();
    assert_eq!(client.get("hello.test", "/").status, 200);
    edge.write_app(&App::new("hello").instance(new.address()));
    wait::within(SECOND, "the new instance is used", || {
        client.get("hello.test", "/").status == 200 && new.requests() > 0
    });
    let after = old.requests();
    assert_eq!(client.get("hello.test", "/").status, 200);
    assert_eq!(old.requests(), after);
}

#[test]
fn a_new_port_is_listened_on_within_a_second() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    let place = free_address(1);
    let more = format!(
        "[[services]]\nprotocol = \"tcp\"\ninternal_port = {}\n\
         [[services.ports]]\nport = {}\nhandlers = [\"http\"]\n",
        echo.address().port(),
        place.port()
    );
    edge.write_app(&App::new("late").instance(echo.address()).more(&more));
    wait::within(SECOND, "the new port is open", || tests::client::Raw::try_tcp(place).is_ok());
    assert_eq!(tests::client::Raw::tcp(place).get("late.test", "/").status, 200);
    edge.remove_app("late");
    wait::until("the port is closed again", || tests::client::Raw::try_tcp(place).is_err());
}

#[test]
fn a_change_of_one_app_touches_no_connection_of_another() {
    let (echo, socket) = (Echo::http1(), websocket_echo());
    let edge = Edge::with([
        App::new("hello").instance(echo.address()),
        App::new("chat").instance(socket.address()),
        App::new("busy").instance(echo.address()),
    ]);
    let mut chat = WebSocket::upgrade(edge.connect(), "chat.test", "/");
    let mut kept = edge.connect_tls("hello.test");
    assert_eq!(kept.get("hello.test", "/").status, 200);
    kept.send("GET /gate HTTP/1.1\r\nhost: hello.test\r\n\r\n");
    echo.holds(1);
    for n in 0..20 {
        edge.write_app(&App::new("busy").hostname(&format!("v{n}.test")).instance(echo.address()));
        edge.write_app(&App::new(&format!("new-{n}")).instance(echo.address()));
    }
    edge.remove_app("busy");
    wait::until("all changes are in", || {
        edge.get("new-19.test", "/").status == 200 && edge.get("busy.test", "/").status == 404
    });
    chat.send(1, b"still here");
    assert_eq!(chat.receive(), (1, b"still here".to_vec()));
    echo.open(1);
    assert_eq!(kept.response().text(), "through the gate");
    assert_eq!(kept.get("hello.test", "/").status, 200);
}

#[test]
fn a_bad_file_leaves_its_app_as_it_was_and_the_others_free_to_change() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    for (n, bad) in [
        "this is not TOML = = =",
        "app = \"hello\"\nhostnames = [\"hello.test\"]\nunheard_of = 1\n",
        "app = \"hello\"\n[[services]]\ninternal_port = 70000\n",
        "app = \"somebody else\"\n",
        "",
    ]
    .iter()
    .enumerate()
    {
        edge.write_app_file("hello", bad);
        // A good change made later is the sign that the bad one has been looked at.
        let sign = format!("sign-{n}");
        edge.write_app(&App::new(&sign).instance(echo.address()));
        wait::until("a later change is in", || {
            edge.get(&format!("{sign}.test"), "/").status == 200
        });
        assert_eq!(edge.get("hello.test", "/").status, 200, "after {bad:?}");
        let status = edge.status();
        assert!(!status["quarantined"].as_array().unwrap().is_empty(), "{status}");
        assert_eq!(status["ready"], true);
    }
    let text = App::new("hello").hostname("fixed.test").instance(echo.address());
    edge.write_app(&text);
    wait::within(SECOND, "the mended file is used", || edge.get("fixed.test", "/").status == 200);
    wait::until("nothing is in quarantine", || {
        edge.status()["quarantined"].as_array().unwrap().is_empty()
    });
}

#[test]
fn a_hostname_that_two_apps_want_stays_with_the_first() {
    let [one, two] = [Echo::http1(), Echo::http1()];
    let edge = Edge::with([App::new("hello").instance(one.address())]);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    edge.write_app(&App::new("thief").hostname("hello.test").instance(two.address()));
    wait::until("the contradiction is seen", || {
        !edge.status()["quarantined"].as_array().unwrap().is_empty()
    });
    assert_eq!(edge.get("hello.test", "/").status, 200);
    assert_eq!((one.requests(), two.requests()), (2, 0));
}

#[test]
fn a_cordoned_instance_gets_nothing_new() {
    let echo = Echo::http1();
    let edge = Edge::with([App::new("hello").instance(echo.address())]);
    assert_eq!(edge.get("hello.test", "/").status, 200);
    edge.write_app(&App::new("hello").instance(echo.address()).more("cordoned = true\n"));
    wait::within(SECOND, "the app has no instance", || edge.get("hello.test", "/").status == 503);
    edge.get("hello.test", "/").assert_error(503, "PR01");
    edge.write_app(&App::new("hello").instance(echo.address()));
    wait::within(SECOND, "it is back", || edge.get("hello.test", "/").status == 200);
}
