//! A node's word to another: whether requests should come here. Said on a stream of the other's probe,
//! at once and whenever it changes, so that a node without traffic knows as soon as one with it.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};

use super::share::{Chunk, Holder, Share};
use crate::drain::State;
use crate::identify::mesh;
use crate::worker::Worker;

/// An alarm is what a drain wakes; nothing is due when it is.
const LOOK: Duration = Duration::from_secs(3_600);

/// Whether a node asks for our word.
pub(super) fn is_asked_for(request: &Request<RecvStream>) -> bool {
    request.headers().contains_key(mesh::STATE)
}

/// Says it until nobody listens, or the worker leaves.
pub(super) async fn say(mut respond: SendResponse<Chunk>, share: &Rc<Share>, worker: &Worker) {
    let Ok(mut send) = respond.send_response(Response::new(()), false) else { return };
    let holder = Holder::new(share);
    let mut states = worker.edge.drain.states();
    let alarm = worker.alarms.alarm();
    loop {
        let is_changed = {
            let mut changed = pin!(states.changed());
            poll_fn(|cx| {
                if send.poll_reset(cx).is_ready() {
                    return Poll::Ready(false);
                }
                // What the node said before it leaves comes first.
                if let Poll::Ready(changed) = changed.as_mut().poll(cx) {
                    return Poll::Ready(changed.is_ok());
                }
                if worker.is_leaving() {
                    return Poll::Ready(false);
                }
                alarm.arm_once(LOOK, cx);
                Poll::Pending
            })
            .await
        };
        if !is_changed {
            break;
        }
        let word = match *states.borrow_and_update() {
            State::Serving => mesh::STATE_SERVING,
            State::Operator { .. } | State::Leaving { .. } => mesh::STATE_DRAINING,
        };
        if send.send_data(holder.hold(Bytes::copy_from_slice(&[word])), false).is_err() {
            return;
        }
    }
    // Nobody is told if the other side is gone.
    drop(send.send_data(holder.hold(Bytes::new()), true));
}
