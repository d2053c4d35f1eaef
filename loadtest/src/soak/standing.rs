//! WebSockets that are open from the beginning to the end, and say something now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::client::websocket::WebSocket;
use crate::flat::{Target, host};

pub(super) struct Standing {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64>>,
}

/// Their app, which nothing is done to but writing its file anew.
pub(super) const APP: &str = "chat";

pub(super) const SOCKETS: u64 = 20;

const PAUSE: Duration = Duration::from_secs(1);

impl Standing {
    /// Half of them in TLS.
    pub(super) fn start(target: &Target) -> Result<Self> {
        let open = |number| {
            let stream = target.stream(number, &host(APP))?;
            WebSocket::open(stream, &host(APP), "/ws")
        };
        let mut sockets = (0..SOCKETS).map(open).collect::<Result<Vec<_>>>()?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let run = move || {
            let mut said = 0;
            while !stopped.load(SeqCst) {
                for (number, socket) in sockets.iter_mut().enumerate() {
                    socket.echo(b"still here").with_context(|| format!("socket {number}"))?;
                    said += 1;
                }
                thread::sleep(PAUSE);
            }
            sockets.into_iter().try_for_each(WebSocket::close)?;
            Ok(said)
        };
        Ok(Self { stop, thread: thread::spawn(run) })
    }

    /// How many messages came back on them; an error if one of them did not last.
    pub(super) fn end(self) -> Result<u64> {
        self.stop.store(true, SeqCst);
        self.thread.join().expect("sockets do not panic")
    }
}
