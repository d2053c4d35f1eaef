//! What the codec does on a real socket: when it writes, what it keeps, what it never uses again.

use super::*;

/// An instance that answers its first request with these pieces, a turn apart, and then keeps the
/// connection.
async fn piecemeal(bed: &Bed, pieces: &'static [&'static [u8]]) -> Scripted {
    bed.instance(move |mut stream| async move {
        read_head(&mut stream).await.unwrap();
        for piece in pieces {
            stream.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        while stream.read_u8().await.is_ok() {}
    })
    .await
}

#[test]
fn head_and_small_body_are_one_segment() {
    run(async |bed: Bed| {
        let (reads, mut seen) = mpsc::channel(8);
        let instance = bed
            .instance(move |mut stream| {
                let reads = reads.clone();
                async move {
                    let mut segment = vec![0; 64 * 1024];
                    let read = stream.read(&mut segment).await.unwrap();
                    segment.truncate(read);
                    reads.send(String::from_utf8(segment).unwrap()).await.unwrap();
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            })
            .await;
        bed.send(&instance.http1(), post(Body::full("small"))).await.unwrap();
        let expected = "POST / HTTP/1.1\r\nhost: instance\r\ncontent-length: 5\r\n\r\nsmall";
        assert_eq!(seen.recv().await.unwrap(), expected);
    });
}

#[test]
fn an_answer_may_come_in_crumbs() {
    run(async |bed: Bed| {
        let instance = piecemeal(
            &bed,
            &[
                b"HTTP/1.1 100 Cont",
                b"inue\r\n\r\nHTTP/1.1 200 O",
                b"K\r\ntransfer-encod",
                b"ing: chunked\r\n\r\n5\r",
                b"\nhel",
                b"lo\r\n0\r\nsu",
                b"m: 1\r\n\r",
                b"\n",
            ],
        );
        let instance = instance.await;
        let response = bed.get(&instance.http1()).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["sum"], "1");
        assert_eq!(collected.to_bytes(), "hello");
        assert_eq!(bed.upstreams.pool.len(), 1);
    });
}

#[test]
fn nothing_is_lent_while_an_instance_is_waited_for() {
    run(async |bed: Bed| {
        let buffers = cork::Buffers::default();
        let upstreams = Upstreams::new(
            &config::Limits::default(),
            &config::Timeouts::default(),
            bed.tasks.clone(),
            buffers.clone(),
            None,
            &Registry::new(1, 100),
            &Ledger::new(Registry::new(1, 100)),
        );
        buffers.take_back(buffers.lend());
        let lent = || buffers.spare_count() == 0;
        let instance =
            piecemeal(&bed, &[b"HTTP/1.1 200 OK\r\n", b"content-length: 4\r\n\r\n", b"ab", b"cd"]);
        let target = instance.await.http1();
        let (mut head, body) = get("/").into_parts();
        let mut sending = Box::pin(upstreams.send(&target, &mut head, body));
        let response = poll_fn(|cx| {
            let polled = sending.as_mut().poll(cx);
            assert!(!lent(), "waiting for the head");
            polled
        });
        let mut body = response.await.unwrap().into_body();
        let mut read = 0;
        poll_fn(|cx| {
            while let std::task::Poll::Ready(frame) = Pin::new(&mut body).poll_frame(cx) {
                assert!(!lent(), "waiting for the body");
                match frame {
                    Some(frame) => read += frame.unwrap().into_data().unwrap().len(),
                    None => return std::task::Poll::Ready(()),
                }
            }
            assert!(!lent(), "waiting for the body");
            std::task::Poll::Pending
        })
        .await;
        assert_eq!(read, 4);
    });
}

#[test]
fn a_connection_that_begins_with_something_is_not_spoken_on() {
    run(async |bed: Bed| {
        let (heard, mut seen) = mpsc::channel(4);
        let instance = bed
            .instance(move |mut stream| {
                let heard = heard.clone();
                async move {
                    stream.write_all(b"220 smtp.example\r\n").await.unwrap();
                    let mut all = Vec::new();
                    let _ended = stream.read_to_end(&mut all).await;
                    heard.send(all).await.unwrap();
                }
            })
            .await;
        let gauge = &bed.upstreams.kinds.http1;
        let stream = connect(instance.address, Duration::from_secs(1), gauge).await.unwrap();
        stream.tcp.readable().await.unwrap();
        let (head, body) = post(Body::full("five!")).into_parts();
        let refused = bed.upstreams.http1.exchange(stream, None, &head, body).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU02, Retry::Unsent));
        assert!(refused.unsent.is_some());
        assert!(seen.recv().await.unwrap().is_empty());
    });
}

#[test]
fn who_is_no_http_server_is_refused_before_the_deadline() {
    run(async |bed: Bed| {
        let instance = piecemeal(&bed, &[b"SSH-2.0-OpenSSH\r\n"]).await;
        let refused = bed.get(&instance.http1()).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU07, Retry::Never));
    });
}

#[test]
fn half_a_head_that_is_wrong_is_not_taken_for_a_closed_connection() {
    run(async |bed: Bed| {
        for (answer, code, retry) in [
            ("HTTP/1.1 200 OK\r\nbad name", Code::PU07, Retry::Never),
            ("HTTP/1.1 200 OK\r\nname: val", Code::PU02, Retry::Idempotent),
            ("", Code::PU02, Retry::Idempotent),
        ] {
            let instance = bed
                .instance(move |mut stream| async move {
                    read_head(&mut stream).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                })
                .await;
            let refused = bed.get(&instance.http1()).await.err().unwrap();
            assert_eq!((refused.failure.code, refused.failure.retry), (code, retry), "{answer}");
        }
    });
}

#[test]
fn the_answer_of_an_instance_that_reads_no_further_is_passed_on() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                read_head(&mut stream).await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
                    .await
                    .unwrap();
            })
            .await;
        let (feed, body) = fed();
        let target = instance.http1();
        let feeding =
            async { while feed.send(Ok(Bytes::from_static(&[b'x'; 8000]))).await.is_ok() {} };
        let sending = bed.send(&target, post(body));
        let (response, ()) = tokio::join!(async { text(sending.await.unwrap()).await }, feeding);
        assert_eq!(response, "no");
        assert_eq!(bed.upstreams.pool.len(), 0);
    });
}

#[test]
fn a_client_that_fails_behind_an_early_answer_breaks_it() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                read_head(&mut stream).await.unwrap();
                // Its end would be the end of the connection.
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegin").await.unwrap();
                while stream.read_u8().await.is_ok() {}
            })
            .await;
        let (feed, body) = fed();
        let mut response = bed.send(&instance.http1(), post(body)).await.unwrap();
        next_frame(response.body_mut()).await.unwrap().unwrap();
        feed.send(Err(Failure::new(Code::PP09))).await.unwrap();
        let failure = next_frame(response.body_mut()).await.unwrap().err().unwrap();
        assert_eq!(failure.code, Code::PU05);
        assert!(next_frame(response.body_mut()).await.is_none());
    });
}

#[test]
fn announced_trailers_of_a_request_are_sent() {
    run(async |bed: Bed| {
        struct Trailing(u8);
        impl http_body::Body for Trailing {
            type Data = Bytes;
            type Error = Failure;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<Frame<Bytes>, Failure>>> {
                self.0 += 1;
                let trailers =
                    ["sum", "other"].map(|name| (name.parse().unwrap(), "1".parse().unwrap()));
                std::task::Poll::Ready(match self.0 {
                    1 => Some(Ok(Frame::data("hello".into()))),
                    2 => Some(Ok(Frame::trailers(trailers.into_iter().collect()))),
                    _ => None,
                })
            }
        }
        let (bodies, mut seen) = mpsc::channel(8);
        let instance = bed
            .instance(move |mut stream| {
                let bodies = bodies.clone();
                async move {
                    read_head(&mut stream).await.unwrap();
                    bodies.send(read_head(&mut stream).await.unwrap()).await.unwrap();
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                }
            })
            .await;
        let mut request = post(Body::boxed(Trailing(0)));
        request.headers_mut().insert("trailer", "sum".parse().unwrap());
        bed.send(&instance.http1(), request).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), "5\r\nhello\r\n0\r\nsum: 1\r\n\r\n");
    });
}

#[test]
fn large_bodies_in_every_framing_arrive_whole() {
    run(async |bed: Bed| {
        const SIZE: usize = 3 << 20;
        let chunked = |chunk: usize| {
            let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            for start in (0..SIZE).step_by(chunk) {
                let end = (start + chunk).min(SIZE);
                bytes.extend_from_slice(format!("{:x}\r\n", end - start).as_bytes());
                bytes.extend((start..end).map(|n| (n % 251) as u8));
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            bytes
        };
        let plain = |head: String| {
            let mut bytes = head.into_bytes();
            bytes.extend((0..SIZE).map(|n| (n % 251) as u8));
            bytes
        };
        for (answer, closes) in [
            (plain(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n")), false),
            (plain("HTTP/1.1 200 OK\r\n\r\n".to_owned()), true),
            (chunked(700_000), false),
            (chunked(16_384), false),
            (chunked(1000), false),
        ] {
            let answer = Rc::new(answer);
            let instance = bed
                .instance(move |mut stream| {
                    let answer = answer.clone();
                    async move {
                        while read_head(&mut stream).await.is_some() {
                            stream.write_all(&answer).await.unwrap();
                            if closes {
                                return;
                            }
                        }
                    }
                })
                .await;
            for _ in 0..2 {
                let response = bed.get(&instance.http1()).await.unwrap();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body.len(), SIZE);
                assert!(body.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
            }
            assert_eq!(instance.accepted.get(), if closes { 2 } else { 1 });
        }
    });
}
