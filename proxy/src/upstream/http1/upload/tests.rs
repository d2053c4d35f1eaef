use std::collections::VecDeque;
use std::task::Waker;

use http::Request;
use http_body::{Frame, SizeHint};

use super::*;

/// Gives its frames and waits where there is none.
struct Script {
    frames: VecDeque<Option<&'static [u8]>>,
    length: Option<u64>,
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        match self.frames.pop_front() {
            Some(Some(data)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(data))))),
            Some(None) => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Takes so many bytes with each write; 0 is when it is full.
#[derive(Default)]
struct Sink {
    takes: VecDeque<usize>,
    writes: Vec<Vec<u8>>,
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let taken = match self.takes.pop_front() {
            Some(0) => return Poll::Pending,
            taken => taken.unwrap_or(usize::MAX).min(bytes.len()),
        };
        self.writes.push(bytes[..taken].to_vec());
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
        self.poll_write(cx, &all)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn upload(frames: &[Option<&'static [u8]>], length: Option<u64>) -> Upload {
    let (head, ()) = Request::post("/").body(()).unwrap().into_parts();
    let body = Body::boxed(Script { frames: frames.iter().copied().collect(), length });
    Upload::new(&head, body, &Buffers::default()).unwrap()
}

/// Sends until it is done, and asks again as often as it waits.
fn send(upload: &mut Upload, sink: &mut Sink) -> Result<usize, Code> {
    let mut cx = Context::from_waker(Waker::noop());
    for waits in 0.. {
        match upload.poll_send(sink, &mut cx) {
            Poll::Ready(Ok(())) => return Ok(waits),
            Poll::Ready(Err(Broken::Body(failure))) => return Err(failure.code),
            Poll::Ready(Err(Broken::Socket(error))) => panic!("{error}"),
            Poll::Pending => {
                let is_idle = upload.waits_for_client();
                assert_eq!(upload.buffer.capacity() == 0, is_idle, "nothing is held meanwhile");
            }
        }
    }
    unreachable!()
}

const HEAD: &str = "POST / HTTP/1.1\r\n";

#[test]
fn head_and_body_leave_in_one_write() {
    let mut sink = Sink::default();
    let frames = [Some(&b"one"[..]), Some(b""), Some(b" two")];
    assert_eq!(send(&mut upload(&frames, Some(7)), &mut sink), Ok(0));
    let expected = format!("{HEAD}content-length: 7\r\n\r\none two");
    assert_eq!(sink.writes, [expected.as_bytes()]);

    static LARGE: [u8; 100_000] = [b'x'; 100_000];
    for length in [Some(100_000), None] {
        let mut sink = Sink::default();
        assert!(send(&mut upload(&[Some(&LARGE)], length), &mut sink).is_ok());
        assert!(sink.writes[0].len() > LARGE.len(), "with the head");
    }
}

#[test]
fn chunks_say_their_size_and_the_last_one_is_empty() {
    static LARGE: [u8; 5000] = [b'x'; 5000];
    let mut sink = Sink::default();
    let frames = [Some(&b"hello"[..]), None, Some(&LARGE)];
    assert_eq!(send(&mut upload(&frames, None), &mut sink), Ok(1));
    let large = String::from_utf8(LARGE.to_vec()).unwrap();
    let expected = format!(
        "{HEAD}transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1388\r\n{large}\r\n0\r\n\r\n"
    );
    assert_eq!(sink.writes.concat(), expected.as_bytes());
}

#[test]
fn what_the_socket_does_not_take_at_once_leaves_in_order() {
    static LARGE: [u8; 6000] = [b'x'; 6000];
    for length in [Some(6004), None] {
        let frames = [Some(&b"ab"[..]), None, Some(&LARGE), Some(b"yz")];
        let mut at_once = Sink::default();
        send(&mut upload(&frames, length), &mut at_once).unwrap();
        for step in [1, 7, 1000] {
            let takes = (0..20_000).map(|n| if n % 3 == 0 { 0 } else { step });
            let mut sink = Sink { takes: takes.collect(), ..Sink::default() };
            send(&mut upload(&frames, length), &mut sink).unwrap();
            assert!(sink.writes.concat() == at_once.writes.concat(), "{length:?} by {step}");
        }
    }
}

#[test]
fn the_end_of_a_body_of_known_length_is_not_waited_for() {
    let mut sink = Sink::default();
    let mut upload = upload(&[Some(b"hello"), None], Some(5));
    assert_eq!(send(&mut upload, &mut sink), Ok(0));
    assert!(upload.is_sent());
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_is_not_sent_to_its_end() {
    for (frames, code) in
        [(&[Some(&b"hello!"[..])][..], Code::PP02), (&[Some(b"hell")], Code::PP09)]
    {
        let mut upload = upload(frames, Some(5));
        assert_eq!(send(&mut upload, &mut Sink::default()), Err(code));
        assert!(!upload.is_sent());
    }
}

#[test]
fn a_client_that_is_always_ready_does_not_keep_the_answer_from_being_read() {
    static LARGE: [u8; 6000] = [b'x'; 6000];
    let mut upload = upload(&[Some(&LARGE[..]); 100], None);
    let mut sink = Sink::default();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(upload.poll_send(&mut sink, &mut cx).is_pending());
    assert_eq!(sink.writes.len(), WRITES_MAX);
    assert!(!upload.waits_for_client(), "it is woken, and goes on");
}
