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
mod errors;
mod deadlines;
mod shutdown;
mod cli;
mod admin;
mod load;
