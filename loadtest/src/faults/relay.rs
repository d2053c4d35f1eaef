//! A wire between two nodes that can be cut, in both directions or in one, without either noticing.
//!
//! What is sent meanwhile is held back and arrives when the wire is mended: TCP sends again what the
//! network lost, so that is what the programs at its ends see of it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::origin::Server;

pub(super) struct Relay {
    server: Server,
    wire: Arc<Wire>,
}

/// What does not get through.
#[derive(Default)]
struct Wire {
    forth: AtomicBool,
    back: AtomicBool,
}

impl Relay {
    pub(super) fn to(target: SocketAddr) -> Result<Self> {
        let wire = Arc::<Wire>::default();
        let cut = wire.clone();
        let server = Server::start(move |client| {
            let Ok(node) = TcpStream::connect(target) else { return Ok(()) };
            let (from, to) = (client.try_clone()?, node.try_clone()?);
            let wire = cut.clone();
            let forth = thread::spawn(move || copy(from, to, |wire| &wire.forth, &wire));
            copy(node, client, |wire| &wire.back, &cut);
            drop(forth.join());
            Ok(())
        })?;
        Ok(Self { server, wire })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Whether bytes towards the target, and from it, get through.
    pub(super) fn cuts(&self, forth: bool, back: bool) {
        self.wire.forth.store(forth, SeqCst);
        self.wire.back.store(back, SeqCst);
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, cut: fn(&Wire) -> &AtomicBool, wire: &Wire) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk) {
        while cut(wire).load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
        if to.write_all(&chunk[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Both));
    drop(from.shutdown(Shutdown::Both));
}
