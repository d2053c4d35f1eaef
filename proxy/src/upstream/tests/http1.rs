use super::*;

use tokio::sync::oneshot;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[test]
fn a_connection_is_used_again() {
    run(async |bed: Bed| {
        let instance = bed.answering(OK).await;
        for _ in 0..5 {
            assert_eq!(text(bed.get(&instance.http1()).await.unwrap()).await, "ok");
            assert_eq!(bed.upstreams.pool.len(), 1);
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn a_target_without_reuse_gets_a_connection_each() {
    run(async |bed: Bed| {
        let instance = bed.answering(OK).await;
        let target =
            Target { address: instance.address, transport: Transport::Http1 { reuse: false } };
        for _ in 0..3 {
            assert_eq!(text(bed.get(&target).await.unwrap()).await, "ok");
        }
        assert_eq!((instance.accepted.get(), bed.upstreams.pool.len()), (3, 0));
    });
}

#[test]
fn a_connection_the_instance_closed_is_replaced() {
    run(async |bed: Bed| {
        // Says keep-alive and closes all the same.
        let instance = bed
            .instance(|mut stream| async move {
                read_head(&mut stream).await.unwrap();
                stream.write_all(OK.as_bytes()).await.unwrap();
            })
            .await;
        for method in ["GET", "POST", "GET", "POST"] {
            let request = Request::builder().method(method).uri("/").body(Body::Empty).unwrap();
            let response = bed.send(&instance.http1(), request).await.unwrap();
            assert_eq!(text(response).await, "ok");
        }
        assert_eq!(instance.accepted.get(), 4);
    });
}

#[test]
fn bytes_nobody_asked_for_cost_the_connection() {
    run(async |bed: Bed| {
        let instance =
            bed.answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1").await;
        for _ in 0..2 {
            assert_eq!(text(bed.get(&instance.http1()).await.unwrap()).await, "ok");
            assert_eq!(bed.upstreams.pool.len(), 0);
        }
        assert_eq!(instance.accepted.get(), 2);
    });
}

#[test]
fn bytes_that_come_while_it_rests_cost_the_connection() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                read_head(&mut stream).await.unwrap();
                stream.write_all(OK.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")
                    .await
                    .unwrap();
                read_head(&mut stream).await;
            })
            .await;
        for _ in 0..3 {
            assert_eq!(text(bed.get(&instance.http1()).await.unwrap()).await, "ok");
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(instance.accepted.get(), 3);
    });
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    run(async |bed: Bed| {
        let not_modified = "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n";
        let none = "HTTP/1.1 204 No Content\r\n\r\n";
        let empty = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        for (method, answer) in [
            ("GET", not_modified),
            ("GET", none),
            ("GET", empty),
            ("HEAD", OK_HEAD),
            ("GET", chunked),
        ] {
            let instance = bed.answering(answer).await;
            for _ in 0..2 {
                let request = Request::builder().method(method).uri("/").body(Body::Empty).unwrap();
                let response = bed.send(&instance.http1(), request).await.unwrap();
                assert!(response.body().is_end_stream(), "{method} {answer}");
                assert_eq!(text(response).await, "");
            }
            assert_eq!(instance.accepted.get(), 1, "{method} {answer}");
        }
    });
}

const OK_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";

#[test]
fn a_chunked_answer_keeps_its_trailers_and_the_connection() {
    run(async |bed: Bed| {
        let instance = bed
            .answering(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: sum\r\n\r\n\
                 3\r\nabc\r\n4\r\ndefg\r\n0\r\nsum: 7\r\n\r\n",
            )
            .await;
        for _ in 0..2 {
            let response = bed.get(&instance.http1()).await.unwrap();
            let collected = response.into_body().collect().await.unwrap();
            assert_eq!(collected.trailers().unwrap()["sum"], "7");
            assert_eq!(collected.to_bytes(), "abcdefg");
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn a_body_may_end_with_the_connection() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                read_head(&mut stream).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nall ").await.unwrap();
                tokio::task::yield_now().await;
                stream.write_all(b"of it").await.unwrap();
            })
            .await;
        assert_eq!(text(bed.get(&instance.http1()).await.unwrap()).await, "all of it");
        assert_eq!(bed.upstreams.pool.len(), 0);
    });
}

#[test]
fn a_truncated_body_is_an_error_and_never_an_end() {
    run(async |bed: Bed| {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nha",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nhalf",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nsum",
        ] {
            let instance = bed
                .instance(move |mut stream| async move {
                    read_head(&mut stream).await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                })
                .await;
            let response = bed.get(&instance.http1()).await.unwrap();
            let failure = response.into_body().collect().await.expect_err(answer);
            assert_eq!(failure.code, Code::PU05, "{answer}");
            assert_eq!(bed.upstreams.pool.len(), 0);
        }
    });
}

#[test]
fn heads_with_two_readings_are_refused() {
    run(async |bed: Bed| {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok!",
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nok",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: evil\r\n\r\n",
            "HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
            "HTTP/1.1 200 OK\r\nfolded: a\r\n b\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            let instance = bed.answering(answer).await;
            let refused = bed.get(&instance.http1()).await.err().expect(answer);
            assert_eq!(refused.failure.code, Code::PU07, "{answer}");
            assert_eq!((refused.failure.retry, bed.upstreams.pool.len()), (Retry::Never, 0));
        }
        // The control: equal lengths are one length.
        let twice = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok";
        let instance = bed.answering(twice).await;
        let response = bed.get(&instance.http1()).await.unwrap();
        assert_eq!(response.headers().get_all("content-length").iter().count(), 1);
        assert_eq!(text(response).await, "ok");
    });
}

#[test]
fn a_head_beyond_its_bounds_is_refused() {
    run(async |bed: Bed| {
        let with = |fields: usize, size: usize| -> &'static str {
            let fields: String =
                (0..fields).map(|n| format!("x-{n}: {}\r\n", "a".repeat(size))).collect();
            format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n").leak()
        };
        for (answer, allowed) in [
            (with(99, 10), true),
            (with(100, 10), false),
            (with(3, 10_000), true),
            (with(4, 10_000), false),
        ] {
            let instance = bed.answering(answer).await;
            let code = bed.get(&instance.http1()).await.err().map(|refused| refused.failure.code);
            assert_eq!(code, (!allowed).then_some(Code::PU07), "{} bytes", answer.len());
        }
    });
}

#[test]
fn interim_answers_are_skipped() {
    run(async |bed: Bed| {
        let instance = bed
            .answering(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                 HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
            .await;
        for _ in 0..2 {
            assert_eq!(text(bed.get(&instance.http1()).await.unwrap()).await, "ok");
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn the_instance_sees_origin_form_and_a_framed_body() {
    run(async |bed: Bed| {
        let (heads, mut seen) = mpsc::channel(8);
        let instance = bed
            .instance(move |mut stream| {
                let heads = heads.clone();
                async move {
                    while let Some(head) = read_head(&mut stream).await {
                        heads.send(head).await.unwrap();
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                            .await
                            .unwrap();
                    }
                }
            })
            .await;
        let absolute = Request::get("https://app.example/a?b").body(Body::Empty).unwrap();
        bed.send(&instance.http1(), absolute).await.unwrap();
        assert_eq!(seen.recv().await.unwrap(), "GET /a?b HTTP/1.1\r\nhost: app.example\r\n\r\n");

        bed.send(&instance.http1(), post(Body::Empty)).await.unwrap();
        let empty = "POST / HTTP/1.1\r\nhost: instance\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(seen.recv().await.unwrap(), empty);

        let (feed, body) = fed();
        let mut request = get("/");
        *request.body_mut() = body;
        drop(feed);
        bed.send(&instance.http1(), request).await.unwrap();
        let chunked = "GET / HTTP/1.1\r\nhost: instance\r\ntransfer-encoding: chunked\r\n\r\n";
        assert_eq!(seen.recv().await.unwrap(), chunked);
    });
}

#[test]
fn an_answer_may_come_while_the_upload_goes_on() {
    run(async |bed: Bed| {
        let (uploaded, seen) = oneshot::channel();
        let uploaded = Rc::new(Cell::new(Some(uploaded)));
        let instance = bed
            .instance(move |mut stream| {
                let uploaded = uploaded.clone();
                async move {
                    read_head(&mut stream).await.unwrap();
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nea")
                        .await
                        .unwrap();
                    let mut upload = vec![0; 25];
                    stream.read_exact(&mut upload).await.unwrap();
                    stream.write_all(b"ly").await.unwrap();
                    uploaded.take().unwrap().send(upload).unwrap();
                    assert_eq!(read_head(&mut stream).await, None);
                }
            })
            .await;
        let (feed, body) = fed();
        let response = bed.send(&instance.http1(), post(body)).await.unwrap();
        // Nobody reads the answer, and yet the upload arrives.
        for chunk in ["hello", "again"] {
            feed.send(Ok(chunk.into())).await.unwrap();
        }
        drop(feed);
        assert_eq!(seen.await.unwrap(), b"5\r\nhello\r\n5\r\nagain\r\n0\r\n\r\n");
        assert_eq!(text(response).await, "ealy");
    });
}

#[test]
fn the_connection_is_used_again_after_an_early_answer() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")
                        .await
                        .unwrap();
                    let mut upload = [0; 10];
                    stream.read_exact(&mut upload).await.unwrap();
                    assert_eq!(&upload[..], b"3\r\nabc\r\n0\r");
                    stream.read_exact(&mut upload[..3]).await.unwrap();
                    stream.write_all(b"ok").await.unwrap();
                }
            })
            .await;
        for _ in 0..2 {
            let (feed, body) = fed();
            let response = bed.send(&instance.http1(), post(body)).await.unwrap();
            feed.send(Ok("abc".into())).await.unwrap();
            drop(feed);
            assert_eq!(text(response).await, "ok");
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn an_answer_that_is_complete_before_the_request_costs_the_connection() {
    run(async |bed: Bed| {
        let (closed, mut seen) = mpsc::channel(4);
        let instance = bed
            .instance(move |mut stream| {
                let closed = closed.clone();
                async move {
                    let head = read_head(&mut stream).await.unwrap();
                    let length = if head.contains("/body") { "2\r\n\r\nno" } else { "0\r\n\r\n" };
                    let answer = format!("HTTP/1.1 413 Too Large\r\ncontent-length: {length}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    while stream.read_u8().await.is_ok() {}
                    closed.send(()).await.unwrap();
                }
            })
            .await;
        for path in ["/", "/body"] {
            let (feed, body) = fed();
            let mut request = post(body);
            *request.uri_mut() = path.parse().unwrap();
            let response = bed.send(&instance.http1(), request).await.unwrap();
            assert_eq!(response.status(), 413);
            text(response).await;
            assert_eq!(bed.upstreams.pool.len(), 0);
            timeout(Duration::from_millis(100), seen.recv()).await.unwrap().unwrap();
            assert!(feed.is_closed());
        }
    });
}

#[test]
fn a_close_look_sees_what_the_runtime_has_not_noticed() {
    run(async |bed: Bed| {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let pool = &bed.upstreams.pool;
        for (look, stands) in [(Look::Glance, true), (Look::Closely, false)] {
            let gauge = &bed.upstreams.kinds.http1;
            let stream = connect(address, Duration::from_secs(1), gauge).await.unwrap();
            let (peer, _) = listener.accept().unwrap();
            // Learns that there is nothing to read, as an exchange does at its end.
            stream.tcp.try_read(&mut [0]).unwrap_err();
            pool.put(address, stream, Instant::now());
            drop(peer); // and no turn of the runtime since
            assert_eq!(pool.take(address, look, Instant::now()).is_some(), stands, "{look:?}");
            assert_eq!((pool.len(), pool.keys()), (0, 0));
        }
    });
}

#[test]
fn a_failure_of_the_clients_body_is_told_as_it_is() {
    run(async |bed: Bed| {
        let instance = bed.instance(|mut stream| async move {
            let mut all = Vec::new();
            let _ended = stream.read_to_end(&mut all).await;
        });
        let instance = instance.await;
        let (feed, body) = fed();
        feed.try_send(Err(Failure::new(Code::PP09))).unwrap();
        let refused = bed.send(&instance.http1(), post(body)).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PP09, Retry::Never));
    });
}

#[test]
fn an_instance_that_closes_without_a_word_may_be_asked_again_for_what_is_idempotent() {
    run(async |bed: Bed| {
        let instance = bed.instance(|mut stream| async move {
            read_head(&mut stream).await;
        });
        let instance = instance.await;
        let refused = bed.get(&instance.http1()).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU02, Retry::Idempotent));
        assert!(refused.unsent.is_none());
    });
}

#[test]
fn nobody_listening_gives_the_request_back() {
    run(async |bed: Bed| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let target = Target { address, transport: Transport::Http1 { reuse: true } };
        let refused = bed.send(&target, get("/back")).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PC01, Retry::Unsent));
        assert!(refused.unsent.is_some());
    });
}

#[test]
fn an_instance_that_hangs_runs_into_its_deadline() {
    run(async |bed: Bed| {
        let silent = bed.instance(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        });
        let silent = silent.await;
        let half = bed.instance(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
            std::future::pending::<()>().await;
        });
        let half = half.await;
        let response = bed.get(&half.http1()).await.unwrap();
        tokio::time::pause();

        let start = Instant::now();
        let refused = bed.get(&silent.http1()).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU06, Retry::Never));
        assert_eq!(start.elapsed().as_secs(), 14);

        let failure = response.into_body().collect().await.err().unwrap();
        assert_eq!(failure.code, Code::PU05);
        assert_eq!(start.elapsed().as_secs(), 60, "counted from the last byte");
    });
}

#[test]
fn the_deadline_of_the_head_counts_from_the_end_of_the_request_body() {
    run(async |bed: Bed| {
        let instance = bed.instance(|mut stream| async move {
            let mut all = Vec::new();
            let _ended = stream.read_to_end(&mut all).await;
        });
        let instance = instance.await;
        let (feed, body) = fed();
        let target = instance.http1();
        let sending = bed.send(&target, post(body));
        let feeding = async {
            feed.send(Ok("begin".into())).await.unwrap();
            tokio::time::pause();
            tokio::time::sleep(Duration::from_secs(30)).await;
            drop(feed);
            Instant::now()
        };
        let (outcome, fed) = tokio::join!(sending, feeding);
        assert_eq!(outcome.err().unwrap().failure.code, Code::PU06);
        assert_eq!(fed.elapsed().as_secs(), 14);
    });
}

#[test]
fn cancelling_closes_the_connection_at_once() {
    run(async |bed: Bed| {
        let (closed, mut seen) = mpsc::channel(4);
        let instance = bed
            .instance(move |mut stream| {
                let closed = closed.clone();
                async move {
                    let head = read_head(&mut stream).await.unwrap();
                    if head.contains("/half") {
                        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
                        stream.write_all(half).await.unwrap();
                    }
                    // Whatever of an upload is still on its way.
                    while stream.read_u8().await.is_ok() {}
                    closed.send(()).await.unwrap();
                }
            })
            .await;
        let target = instance.http1();
        let within = Duration::from_millis(100);

        // Waiting for the head.
        assert!(timeout(within, bed.get(&target)).await.is_err(), "no answer comes");
        timeout(within, seen.recv()).await.unwrap().unwrap();

        // Reading the body.
        let mut response = bed.send(&target, get("/half")).await.unwrap();
        next_frame(response.body_mut()).await.unwrap().unwrap();
        drop(response);
        timeout(within, seen.recv()).await.unwrap().unwrap();

        // Uploading, with a task that drives.
        let (feed, body) = fed();
        let mut request = post(body);
        *request.uri_mut() = "/half".parse().unwrap();
        let response = bed.send(&target, request).await.unwrap();
        drop(response);
        timeout(within, seen.recv()).await.unwrap().unwrap();
        timeout(within, feed.closed()).await.expect("the request body is dropped, too");
    });
}

#[test]
fn the_pool_is_bounded_per_instance_in_total_and_in_time() {
    let limits = config::Limits {
        upstream_idle_per_instance_max: 2,
        upstream_idle_max: 3,
        ..config::Limits::default()
    };
    run_with(Settings { limits, ..Settings::default() }, async |bed: Bed| {
        let instances = [bed.answering(OK).await, bed.answering(OK).await, bed.answering(OK).await];
        let three_at_once = async |instance: &Scripted| {
            let target = instance.http1();
            let answers = tokio::join!(bed.get(&target), bed.get(&target), bed.get(&target));
            for answer in [answers.0, answers.1, answers.2] {
                text(answer.unwrap()).await;
            }
        };
        three_at_once(&instances[0]).await;
        assert_eq!(bed.upstreams.pool.len(), 2);
        three_at_once(&instances[1]).await;
        three_at_once(&instances[2]).await;
        assert_eq!(bed.upstreams.pool.len(), 3);
        // The oldest went first.
        assert_eq!(bed.upstreams.pool.keys(), 2);

        let stop = CancellationToken::new();
        let sweep = {
            let (upstreams, stop) = (bed.upstreams.clone(), stop.clone());
            bed.tasks.spawn_local(async move { upstreams.sweep(stop).await })
        };
        tokio::time::pause();
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        assert_eq!(bed.upstreams.pool.len(), 3);
        tokio::time::sleep(Duration::from_millis(2_000)).await;
        assert_eq!((bed.upstreams.pool.len(), bed.upstreams.pool.keys()), (0, 0));
        stop.cancel();
        sweep.await.unwrap();
    });
}

#[test]
fn an_idle_connection_is_not_used_after_its_deadline() {
    run(async |bed: Bed| {
        let instance = bed.answering(OK).await;
        text(bed.get(&instance.http1()).await.unwrap()).await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_millis(3_999)).await;
        tokio::time::resume();
        text(bed.get(&instance.http1()).await.unwrap()).await;
        assert_eq!(instance.accepted.get(), 1);
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(4)).await;
        tokio::time::resume();
        text(bed.get(&instance.http1()).await.unwrap()).await;
        assert_eq!(instance.accepted.get(), 2);

        bed.upstreams.close_idle();
        assert_eq!((bed.upstreams.pool.len(), bed.upstreams.pool.keys()), (0, 0));
    });
}

#[test]
fn a_large_body_streams_both_ways() {
    run(async |bed: Bed| {
        const SIZE: usize = 8 << 20;
        let instance = bed
            .instance(|mut stream| async move {
                while read_head(&mut stream).await.is_some() {
                    let mut upload = vec![0; SIZE];
                    stream.read_exact(&mut upload).await.unwrap();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&upload).await.unwrap();
                }
            })
            .await;
        let sent: Bytes = (0..SIZE).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
        for _ in 0..2 {
            let request = post(Body::full(sent.clone()));
            let response = bed.send(&instance.http1(), request).await.unwrap();
            assert!(response.into_body().collect().await.unwrap().to_bytes() == sent);
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}
