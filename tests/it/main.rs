//! Integration tests: the real binary, real sockets, clients and instances that are none of ours.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod harness;
mod http1;
mod http2;
mod tls;
mod framing;
mod headers;
mod limits;
mod inventory;
mod mesh;
mod tcp;
mod websocket;
mod grpc;
mod handoff;
mod errors;
mod deadlines;
mod shutdown;
mod upgrade;
mod drain;
mod drain_http2;
mod drain_websocket;
mod drain_mesh;
mod cli;
mod admin;
mod metrics;
mod memory;
mod memory_ledger;
mod leaks;
mod trace;
mod load;
mod export;
mod telemetry;
mod steer;
mod filter;
mod black_box;
mod backtraces;
mod pressure;
mod watchdog;
mod announce;
mod init;
mod systemd;
mod container;
mod package;
