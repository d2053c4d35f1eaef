//! The downstream HTTP drivers against a real node, over real sockets.
//!
//! Every test starts a node of its own on a thread, with an instance that lives in the test, and
//! speaks to it in raw bytes or with the h2 crate. Each negative case has a positive control.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests say what must hold")]

mod harness;
mod instance;
mod client;
mod h2_client;

mod framing;
mod parking;
mod deadlines;
mod cancelling;
mod upgrade;
mod h2_flow;
mod h2_heads;
mod floods;
mod torture;
