use std::time::Duration;

use telemetry::error::chain;
use tokio::net::UnixListener;

use super::*;

/// Talks to somebody who says `said`, whatever is asked.
async fn with<T>(said: &str, talk: impl AsyncFnOnce(Result<Bird, BirdError>) -> T) -> T {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bird.ctl");
    let listener = UnixListener::bind(&path).expect("the folder is ours");
    let speak = async {
        let (mut stream, _) = listener.accept().await.expect("a client");
        // Whoever has heard enough hangs up.
        drop(stream.write_all(said.as_bytes()).await);
        let mut asked = [0; 256];
        while let Ok(1..) = stream.read(&mut asked).await {}
    };
    let talk = async { talk(Bird::connect(&path).await).await };
    let both = async { tokio::join!(speak, talk).1 };
    tokio::time::timeout(Duration::from_secs(10), both).await.expect("it ends")
}

fn test(run: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(run);
}

const WELCOME: &str = "0001 BIRD 2.0.12 ready.\n";

#[test]
fn what_bird_says_is_understood() {
    test(async {
        let said = "0001 BIRD 2.0.12 ready.\n\
            2002-Name       Proto      Table      State  Since         Info\n\
            1002-anycast4   Static     master4    down   15:11:07.988  \n \
            anycast6   Static     master6    up     15:11:07.988  \n\
            0000 \n\
            0011-anycast4: enabled\n anycast6: enabled\n0000 \n\
            0010-anycast4: already enabled\n0000 \n\
            0009-anycast4: disabled\n0000 \n\
            0008-anycast4: already disabled\n0000 \n\
            +1002-something that is logged\n\
            0002-Reading configuration from bird.conf\n0003 Reconfigured\n\
            0002-Reading configuration from bird.conf\n0004 Reconfiguration in progress\n\
            0023 TRUE\n";
        with(said, async |bird| {
            let mut bird = bird.expect("a welcome");
            assert_eq!(bird.protocol("anycast6").await.expect("it is there"), Protocol::Up);
            bird.enable("anycast4").await.expect("enabled");
            bird.enable("anycast4").await.expect("enabled already");
            bird.disable("anycast4").await.expect("disabled");
            bird.disable("anycast4").await.expect("disabled already");
            bird.configure().await.expect("done");
            bird.configure().await.expect("in progress");
            assert_eq!(bird.constant("DRAIN").await.expect("a value"), "TRUE");
        })
        .await;
    });
}

#[test]
fn a_refusal_says_what_was_asked_and_what_bird_thinks_of_it() {
    let refusals = [
        ("9001 syntax error, unexpected CF_SYM_UNDEFINED", "9001"),
        ("8007 Access denied", "8007"),
        ("0016 Access restricted", "0016"),
        ("0002-Reading configuration from bird.conf\n8002 ./drain.conf:3:1 syntax error", "8002"),
        ("0006 Reconfiguration ignored, shutting down", "0006"),
    ];
    for (refusal, code) in refusals {
        test(async move {
            with(&format!("{WELCOME}{refusal}\n"), async |bird| {
                let error = bird.expect("a welcome").configure().await.expect_err("refused");
                let text = chain(&error);
                assert!(text.contains(code) && text.contains("\"configure\""), "{text}");
            })
            .await;
        });
    }
}

#[test]
fn a_protocol_that_is_not_there_is_neither_up_nor_down() {
    for reply in ["0000 \n", "1002-anycast   Static  master4  up  15:11:07\n0000 \n"] {
        test(async move {
            with(&format!("{WELCOME}{reply}"), async |bird| {
                let error = bird.expect("a welcome").protocol("anycast4").await;
                assert!(matches!(error, Err(BirdError::Unclear { .. })), "{error:?}");
            })
            .await;
        });
    }
}

#[test]
fn whoever_is_not_bird_is_an_error_and_no_panic() {
    let endless = format!("{WELCOME}{}", "1002-x\n".repeat(20_000));
    let long = format!("{WELCOME}1002-{}\n", "x".repeat(100_000));
    let strange = [
        "HTTP/1.1 200 OK\r\n\r\n",
        " continued before anything\n",
        "00\n",
        "00é1 x\n",
        "+001 x\n",
        "0001\u{0}x\n",
        "99999 x\n",
        "",
        "0001 BIRD",
        &endless,
        &long,
    ];
    for said in strange {
        test(async move {
            // A listener that hangs up ends the conversation, too.
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("bird.ctl");
            let listener = UnixListener::bind(&path).expect("the folder is ours");
            let speak = async {
                let (mut stream, _) = listener.accept().await.expect("a client");
                drop(stream.write_all(said.as_bytes()).await);
            };
            let talk = async {
                let mut bird = Bird::connect(&path).await?;
                bird.protocol("anycast4").await
            };
            let both = async { tokio::join!(speak, talk).1 };
            let talked = tokio::time::timeout(Duration::from_secs(10), both).await;
            assert!(talked.expect("it ends").is_err(), "{:?}", said.get(..40));
        });
    }
}

#[test]
fn nobody_at_the_socket_is_said_with_its_path() {
    test(async {
        let error = Bird::connect(Path::new("/nonexistent/bird.ctl")).await.err();
        let text = chain(&error.expect("nobody is there"));
        assert!(text.starts_with("BIRD does not answer at /nonexistent/bird.ctl: "), "{text}");
    });
}
