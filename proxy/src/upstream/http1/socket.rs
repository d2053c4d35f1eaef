//! The connection of an exchange as the body of the answer reads it.
//!
//! Usually the body has it to itself. When the answer came before the request was sent, a task goes
//! on sending, also while nobody reads the answer; then each has its half, and the body ends the task.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::upload::{Broken, Upload};
use crate::upstream::connect::{Open, Stream};

pub(super) enum Socket {
    Whole(Stream),
    Half(Half),
}

/// What the body has while a task sends.
pub(super) struct Half {
    read: OwnedReadHalf,
    open: Open,
    upload: Rc<Sending>,
    _task: AbortOnDrop,
}

/// What the task and the body know of each other.
struct Sending {
    state: RefCell<State>,
    /// Who reads the answer.
    reader: Cell<Option<Waker>>,
}

enum State {
    Going,
    Sent(OwnedWriteHalf),
    /// The instance takes no more of it. Its answer may be whole all the same.
    Refused,
    /// The client's side failed, so the instance has half a request.
    Interrupted,
}

struct AbortOnDrop(JoinHandle<()>);

// === impl Socket ===

impl Socket {
    /// `stream`, on which `tasks` go on with `upload`.
    pub(super) fn shared(stream: Stream, upload: Upload, tasks: &TaskTracker) -> Self {
        let Stream { tcp, open } = stream;
        let (read, write) = tcp.into_split();
        let state = RefCell::new(State::Going);
        let sending = Rc::new(Sending { state, reader: Cell::default() });
        let task = tasks.spawn_local(sending.clone().run(upload, write));
        Self::Half(Half { read, open, upload: sending, _task: AbortOnDrop(task) })
    }

    /// Whether the request can no longer be sent to its end, so that no answer to it counts. The
    /// current task is woken when it comes to that.
    pub(super) fn is_interrupted(&self, cx: &Context<'_>) -> bool {
        let Self::Half(half) = self else { return false };
        half.upload.reader.set(Some(cx.waker().clone()));
        matches!(*half.upload.state.borrow(), State::Interrupted)
    }

    /// The connection, if the whole request has been sent on it.
    pub(super) fn into_stream(self) -> Option<Stream> {
        let Half { read, open, upload, _task } = match self {
            Self::Whole(stream) => return Some(stream),
            Self::Half(half) => half,
        };
        let State::Sent(write) = upload.state.replace(State::Going) else { return None };
        let tcp = read.reunite(write).ok()?;
        Some(Stream { tcp, open })
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tcp = match self {
            Self::Whole(stream) => &stream.tcp,
            Self::Half(half) => half.read.as_ref(),
        };
        tcp.poll_read_ready(cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Whole(stream) => Pin::new(&mut stream.tcp).poll_read(cx, buf),
            Self::Half(half) => Pin::new(&mut half.read).poll_read(cx, buf),
        }
    }
}

// === impl Sending ===

impl Sending {
    async fn run(self: Rc<Self>, mut upload: Upload, mut write: OwnedWriteHalf) {
        let sent = poll_fn(|cx| upload.poll_send(&mut write, cx)).await;
        *self.state.borrow_mut() = match sent {
            Ok(()) => State::Sent(write),
            Err(Broken::Socket(_)) => State::Refused,
            Err(Broken::Body(_)) => State::Interrupted,
        };
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

// === impl AbortOnDrop ===

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
