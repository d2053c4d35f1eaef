//! A tunnel on an HTTP/2 stream: WebSocket by RFC 8441 from clients, raw TCP between nodes.

use std::rc::Rc;

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Response, StatusCode, header, response};

use super::duplex::Duplex;
use super::share::{Chunk, Share};
use crate::copy;
use crate::http::upgrade::Switched;
use crate::limit::HeldTunnel;
use crate::worker::Worker;

/// Answers 200 and copies bytes until both sides have ended.
pub(super) async fn serve(
    mut head: response::Parts,
    recv: RecvStream,
    mut respond: SendResponse<Chunk>,
    switched: Switched,
    share: &Rc<Share>,
    worker: &Rc<Worker>,
) {
    //= https://www.rfc-editor.org/rfc/rfc8441#section-5
    //# the server sends a HEADERS frame with a :status of 200 (rather than 101)
    head.status = StatusCode::OK;
    head.headers.remove(header::CONNECTION);
    head.headers.remove(header::UPGRADE);
    let Ok(send) = respond.send_response(Response::from_parts(head, ()), false) else { return };
    // Dropped before its end it resets the stream.
    let mut client = Duplex::new(send, recv, share);
    let Switched { tunnel, held, kind } = switched;
    let held = HeldTunnel::new(held);
    let copied = copy::both_ways(&mut client, tunnel, kind, worker, &held.moved);
    let copied = held.note(copied).await;
    held.ended(&copied);
    if let Err(failure) = copied {
        worker.count(&failure);
    }
}
