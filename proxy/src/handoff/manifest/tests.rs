use serde_json::json;

use super::*;

fn unhealthy(number: usize) -> Unhealthy {
    let (app, instance) = (format!("app-{number}"), format!("instance-{number}"));
    Unhealthy { app, instance, internal_port: 8080 }
}

#[test]
fn messages_look_as_another_version_expects_them() {
    let check = |message: serde_json::Value, expected: serde_json::Value| {
        assert_eq!(message, expected);
    };
    let greeting = Greeting { manifest: 1, version: "1.2.3".to_owned() };
    let hello = FromSuccessor::Hello { greeting: greeting.clone(), pid: 7, counts: false };
    check(
        json!(hello),
        json!({ "say": "hello", "manifest": 1, "version": "1.2.3", "pid": 7, "counts": false }),
    );
    check(json!(FromSuccessor::At { step: Step::Ready }), json!({ "say": "at", "step": "ready" }));
    check(json!(FromPredecessor::Go), json!({ "say": "go" }));
    let address = "[2001:db8::1]:443".parse().unwrap();
    check(
        json!(FromPredecessor::Sockets { places: vec![Place::Clients { address }] }),
        json!({ "say": "sockets", "places": [{ "for": "clients", "address": "[2001:db8::1]:443" }] }),
    );
}

#[test]
fn what_a_newer_version_adds_is_passed_over() {
    let manifest = json!({
        "say": "manifest", "manifest": 1, "version": "9.0.0", "pid": 7, "generation": 3,
        "sockets": 2, "apps": 1, "colour": "mauve",
    });
    let FromPredecessor::Manifest(manifest) = serde_json::from_value(manifest).unwrap() else {
        panic!("it is a manifest");
    };
    assert_eq!((manifest.generation, manifest.knowledge, manifest.counts), (3, 0, false));
    assert!(manifest.tickets.is_none());
    let knowledge = json!({ "say": "knowledge", "moods": ["good"] });
    let FromPredecessor::Knowledge(knowledge) = serde_json::from_value(knowledge).unwrap() else {
        panic!("it is knowledge");
    };
    assert_eq!(knowledge, Knowledge::default());
}

#[test]
fn knowledge_is_split_into_messages_that_fit_and_put_together_again() {
    assert!(Knowledge::default().parts().is_empty());
    let known: Vec<_> = (0..5_000).map(unhealthy).collect();
    let parts = Knowledge { unhealthy: known.clone(), ..Knowledge::default() }.parts();
    assert!(parts.len() > 3);
    let mut whole = Knowledge::default();
    for part in parts {
        let message = serde_json::to_vec(&FromPredecessor::Knowledge(part.clone())).unwrap();
        assert!(message.len() <= MESSAGE_BYTES_MAX);
        assert!(message.len() > MESSAGE_BYTES_MAX / 2 || whole.unhealthy.len() > 4_000);
        whole.add(part);
    }
    assert_eq!(whole.unhealthy, known);
}

#[test]
fn what_no_message_holds_is_left_out() {
    let mut known: Vec<_> = (0..3).map(unhealthy).collect();
    known[1].app = "x".repeat(MESSAGE_BYTES_MAX);
    let parts = Knowledge { unhealthy: known, ..Knowledge::default() }.parts();
    assert_eq!(parts.len(), 1);
    assert_eq!(parts[0].unhealthy, [unhealthy(0), unhealthy(2)]);
}
