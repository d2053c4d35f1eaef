//! ferrule's data plane: from an accepted socket to the instance and back.
//!
//! A connection is accepted ([`listener`]), admitted and secured ([`connection`]), and becomes HTTP
//! ([`http`]) or a raw copy ([`tcp`]). A request passes the layers of [`stack`]: it gets an id and
//! an answer, is admitted, identified, and dispatched to an instance that [`balance`] chooses and
//! [`upstream`] reaches. Everything long-lived is built in [`app`].

pub mod cli;
pub mod init;
pub mod app;
pub mod config;
pub mod worker;
pub mod drain;
pub mod listener;
pub mod connection;
pub mod downstream;
pub mod tls;
pub mod http;
pub mod stack;
// What leaks by spans is in both builds that leak.
#[cfg(any(feature = "leaky-layer", feature = "seeded-leaks"))]
pub mod leaky;
#[cfg(feature = "seeded-leaks")]
pub mod seeded;
pub mod answer;
pub mod admission;
pub mod trace;
pub mod identify;
pub mod dispatch;
pub mod limit;
pub mod holdings;
pub mod balance;
pub mod health;
pub mod upstream;
pub mod tcp;
pub mod copy;
pub mod body;
pub mod error;
pub mod handoff;
pub mod edge;
pub mod inventory;
pub mod filter;
pub mod nodes;
pub mod probe;
pub mod io;
pub mod alarm;
pub mod metrics;
pub mod admin;
pub mod announce;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(feature = "micro")]
pub mod micro;
