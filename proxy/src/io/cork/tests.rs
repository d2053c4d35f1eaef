use std::future::poll_fn;
use std::task::Waker;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// A transport that takes what it is allowed to.
#[derive(Default)]
struct Scripted {
    taken: Vec<u8>,
    writes: usize,
    /// Bytes it takes before it says `Pending`.
    room: usize,
    fails: bool,
    flushes: usize,
    is_flush_pending: bool,
    shut_down_at: Option<usize>,
}

impl AsyncWrite for Scripted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.fails {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.room == 0 {
            return Poll::Pending;
        }
        let taken = bytes.len().min(self.room);
        self.room -= taken;
        self.writes += 1;
        self.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_flush_pending {
            return Poll::Pending;
        }
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down_at = Some(self.taken.len());
        Poll::Ready(Ok(()))
    }
}

fn corked(room: usize, buffers: &Buffers) -> (Cork<Scripted>, Handle<Scripted>) {
    cork(Scripted { room, ..Scripted::default() }, buffers.clone())
}

fn write(cork: &mut Cork<Scripted>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    Pin::new(cork).poll_write(&mut Context::from_waker(Waker::noop()), bytes)
}

fn drain(handle: &Handle<Scripted>) -> Poll<io::Result<()>> {
    handle.poll_drain(&mut Context::from_waker(Waker::noop()))
}

fn spare(buffers: &Buffers) -> usize {
    buffers.shared.spare.borrow().len()
}

#[test]
fn what_was_written_leaves_in_one_write_when_drained() {
    let buffers = Buffers::default();
    let (mut cork, handle) = corked(usize::MAX, &buffers);
    for frame in ["one ", "two ", "three"] {
        assert!(
            matches!(write(&mut cork, frame.as_bytes()), Poll::Ready(Ok(n)) if n == frame.len())
        );
        let flushed = Pin::new(&mut cork).poll_flush(&mut Context::from_waker(Waker::noop()));
        assert!(flushed.is_ready());
    }
    assert_eq!((handle.pending(), handle.with(|io| io.writes)), (13, 0));
    assert!(matches!(drain(&handle), Poll::Ready(Ok(()))));
    assert_eq!(handle.pending(), 0);
    handle.with(|io| {
        assert_eq!((io.writes, io.flushes, &io.taken[..]), (1, 1, &b"one two three"[..]));
    });
    // With nothing to send, draining touches nothing.
    assert!(drain(&handle).is_ready());
    assert_eq!(handle.with(|io| (io.writes, io.flushes)), (1, 1));
}

#[test]
fn an_idle_connection_holds_no_buffer_and_lends_its_own_on() {
    let buffers = Buffers::default();
    let (mut first, first_handle) = corked(usize::MAX, &buffers);
    let (mut second, second_handle) = corked(usize::MAX, &buffers);
    assert!(write(&mut first, b"a").is_ready());
    assert_eq!(spare(&buffers), 0);
    assert!(drain(&first_handle).is_ready());
    assert_eq!((spare(&buffers), first.inner.borrow().buffer.capacity()), (1, 0));

    assert!(write(&mut second, b"b").is_ready());
    assert_eq!(spare(&buffers), 0, "the second connection uses the buffer of the first");
    drop((second, second_handle));
    assert_eq!(spare(&buffers), 1, "a connection that dies gives it back");
}

#[test]
fn spare_buffers_are_few_and_none_of_them_is_huge() {
    let buffers = Buffers::default();
    let lent: Vec<_> = (0..100).map(|_| buffers.lend()).collect();
    lent.into_iter().for_each(|buffer| buffers.take_back(buffer));
    assert_eq!(spare(&buffers), SPARE_MAX);
    buffers.shared.spare.borrow_mut().clear();
    buffers.take_back(Vec::with_capacity(4 * CORK_BYTES_MAX + 1));
    buffers.take_back(Vec::new());
    assert_eq!(spare(&buffers), 0);
}

#[test]
fn a_transport_that_takes_nothing_bounds_what_is_gathered() {
    let (mut cork, handle) = corked(0, &Buffers::default());
    let frame = [7; 1024];
    let mut written = 0;
    while let Poll::Ready(taken) = write(&mut cork, &frame) {
        written += taken.unwrap();
        assert!(drain(&handle).is_pending());
    }
    assert_eq!((written, handle.pending()), (CORK_BYTES_MAX, CORK_BYTES_MAX));

    // Room for one frame lets one frame in.
    handle.with(|io| io.room = frame.len());
    assert!(write(&mut cork, &frame).is_ready());
    assert!(write(&mut cork, &frame).is_pending());
    assert_eq!(handle.pending(), CORK_BYTES_MAX);
}

#[test]
fn several_slices_are_taken_in_order_up_to_the_bound() {
    let (mut cork, handle) = corked(usize::MAX, &Buffers::default());
    let large = vec![1; CORK_BYTES_MAX];
    let slices = [io::IoSlice::new(b"head"), io::IoSlice::new(&large), io::IoSlice::new(b"rest")];
    let cx = &mut Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(taken)) = Pin::new(&mut cork).poll_write_vectored(cx, &slices) else {
        panic!("there is room");
    };
    assert_eq!(
        taken, CORK_BYTES_MAX,
        "what is left of the second slice, and the third, have to wait"
    );
    assert!(write(&mut cork, &[1; 4]).is_ready());
    assert!(write(&mut cork, b"rest").is_ready());
    assert!(drain(&handle).is_ready());
    handle.with(|io| {
        assert_eq!((&io.taken[..4], &io.taken[4 + CORK_BYTES_MAX..]), (&b"head"[..], &b"rest"[..]));
    });
}

#[tokio::test]
async fn a_slow_reader_gets_every_byte_in_order_and_bounds_the_buffer() {
    let (near, mut far) = tokio::io::duplex(1_000);
    let (mut cork, handle) = cork(near, Buffers::default());
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let (most, largest) = (Cell::new(0), Cell::new(0));
    let writing = async {
        for chunk in sent.chunks(9_000) {
            cork.write_all(chunk).await.unwrap();
            // As a driver does: drain as far as it goes, then go on.
            let drained = poll_fn(|cx| Poll::Ready(handle.poll_drain(cx))).await;
            assert!(!matches!(drained, Poll::Ready(Err(_))));
            most.set(handle.pending().max(most.get()));
            largest.set(cork.inner.borrow().buffer.capacity().max(largest.get()));
        }
        cork.shutdown().await.unwrap();
    };
    let reading = async {
        let mut received = Vec::new();
        far.read_to_end(&mut received).await.unwrap();
        received
    };
    let ((), received) = tokio::join!(writing, reading);
    assert!(received == expected, "what arrives is what was sent");
    assert!((CORK_BYTES_MAX / 2..CORK_BYTES_MAX + 9_000).contains(&most.get()), "{}", most.get());
    assert!(largest.get() <= 4 * CORK_BYTES_MAX, "{}", largest.get());
}

#[test]
fn an_error_surfaces_where_it_is_noticed() {
    let (mut cork, handle) = corked(0, &Buffers::default());
    while write(&mut cork, &[0; 1024]).is_ready() {}
    handle.with(|io| io.fails = true);
    for _ in 0..2 {
        let Poll::Ready(Err(error)) = drain(&handle) else { panic!("the drain fails") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let Poll::Ready(Err(error)) = write(&mut cork, b"more") else { panic!("writing fails") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_flush_that_has_to_wait_is_asked_again() {
    let (mut cork, handle) = corked(usize::MAX, &Buffers::default());
    handle.with(|io| io.is_flush_pending = true);
    assert!(write(&mut cork, b"record").is_ready());
    assert!(drain(&handle).is_pending());
    assert!(drain(&handle).is_pending());
    handle.with(|io| io.is_flush_pending = false);
    assert!(drain(&handle).is_ready());
    assert_eq!(handle.with(|io| (io.writes, io.flushes)), (1, 1));
}

#[test]
fn shutting_down_sends_what_is_pending_first() {
    let (mut cork, handle) = corked(0, &Buffers::default());
    assert!(write(&mut cork, b"goodbye").is_ready());
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut cork).poll_shutdown(cx).is_pending());
    handle.with(|io| io.room = 7);
    assert!(Pin::new(&mut cork).poll_shutdown(cx).is_ready());
    assert_eq!(handle.with(|io| io.shut_down_at), Some(7));
}
