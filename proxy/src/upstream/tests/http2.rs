use super::*;

use futures_util::future::join_all;
use h2::Reason;
use http::HeaderMap;
use tokio::sync::{Notify, Semaphore, mpsc};

fn server() -> h2::server::Builder {
    h2::server::Builder::new()
}

fn answer(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}

/// Answers with the request's body and path.
async fn echo(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let path = request.uri().path().to_owned();
    let mut sending = respond.send_response(answer(200), false).unwrap();
    sending.send_data(path.into(), false).unwrap();
    while let Some(Ok(bytes)) = request.body_mut().data().await {
        request.body_mut().flow_control().release_capacity(bytes.len()).unwrap();
        sending.send_data(bytes, false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    if let Ok(Some(received)) = request.body_mut().trailers().await {
        trailers = received;
    }
    trailers.insert("grpc-status", "0".parse().unwrap());
    sending.send_trailers(trailers).unwrap();
}

/// Sends and, as the proxy does, sends again what was not processed.
async fn send_until_processed(bed: &Bed, to: &Target, path: &str) -> Response<Body> {
    for _ in 0..20 {
        match bed.send(to, get(path)).await {
            Ok(response) => return response,
            Err(refused) => assert_eq!(refused.failure.retry, Retry::Unsent, "{refused:?}"),
        }
    }
    panic!("refused twenty times");
}

#[test]
fn a_hundred_requests_share_one_connection_and_one_attempt_to_make_it() {
    run(async |bed: Bed| {
        let instance = bed.h2_instance(server(), echo).await;
        let target = instance.h2c();
        let requests = (0..100).map(async |n| {
            let path = format!("/{n}");
            assert_eq!(text(bed.send(&target, get(&path)).await.unwrap()).await, path);
        });
        join_all(requests).await;
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn a_cancelled_request_does_not_end_the_attempt_for_the_others() {
    run(async |bed: Bed| {
        let instance = bed.h2_instance(server(), echo).await;
        let target = instance.h2c();
        let mut first = Box::pin(bed.get(&target));
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = bed.get(&target);
        drop(first);
        assert_eq!(text(second.await.unwrap()).await, "/");
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn a_failed_attempt_is_shared_and_not_repeated_at_once() {
    run(async |bed: Bed| {
        // Accepts and closes.
        let instance = bed.instance(|stream| async move { drop(stream) }).await;
        let target = instance.h2c();
        let refused = join_all((0..100).map(|_| bed.get(&target))).await;
        for refused in refused {
            let refused = refused.err().unwrap();
            assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU01, Retry::Unsent));
            assert!(refused.unsent.is_some());
        }
        for _ in 0..100 {
            bed.get(&target).await.err().unwrap();
        }
        assert_eq!(instance.accepted.get(), 1);

        tokio::time::sleep(Duration::from_millis(60)).await;
        bed.get(&target).await.err().unwrap();
        assert_eq!(instance.accepted.get(), 2);
    });
}

#[test]
fn an_instance_that_speaks_something_else_is_told_apart() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
                let mut rest = Vec::new();
                let _ended = stream.read_to_end(&mut rest).await;
            })
            .await;
        assert_eq!(bed.get(&instance.h2c()).await.err().unwrap().failure.code, Code::PU01);

        let silent = bed
            .instance(|stream| async move {
                std::future::pending::<()>().await;
                drop(stream);
            })
            .await;
        tokio::time::pause();
        assert_eq!(bed.get(&silent.h2c()).await.err().unwrap().failure.code, Code::PU01);
    });
}

#[test]
fn bodies_and_trailers_go_both_ways() {
    run(async |bed: Bed| {
        let instance = bed.h2_instance(server(), echo).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("sum", "3".parse().unwrap());
        let frames = [Ok(Frame::data(Bytes::from("abc"))), Ok(Frame::trailers(trailers))];
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let request = post(Body::boxed(body));
        let response = bed.send(&instance.h2c(), request).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["sum"], "3");
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "/abc");
    });
}

#[test]
fn the_instance_sees_an_absolute_target_and_nothing_about_the_connection() {
    run(async |bed: Bed| {
        let (seen, mut heads) = mpsc::channel(4);
        let instance = bed
            .h2_instance(server(), move |request, mut respond| {
                let seen = seen.clone();
                async move {
                    seen.send(request.into_parts().0).await.unwrap();
                    respond.send_response(answer(204), true).unwrap();
                }
            })
            .await;
        let request = Request::get("/a?b")
            .header("host", "app.example:8080")
            .header("connection", "keep-alive")
            .header("keep-alive", "5")
            .header("te", "gzip")
            .header("accept", "all")
            .body(Body::Empty)
            .unwrap();
        let response = bed.send(&instance.h2c(), request).await.unwrap();
        assert!(matches!(response.body(), Body::Empty));
        let head = heads.recv().await.unwrap();
        assert_eq!(head.uri, "http://app.example:8080/a?b");
        assert_eq!(head.headers.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["accept"]);

        let request = Request::get("https://app.example/").body(Body::Empty).unwrap();
        bed.send(&instance.h2c(), request).await.unwrap();
        assert_eq!(heads.recv().await.unwrap().uri, "https://app.example/");
    });
}

#[test]
fn a_head_beyond_its_bounds_is_refused() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |request, mut respond| async move {
                let mut answer = answer(200);
                let (fields, size) = match request.uri().path() {
                    "/many" => (101, 1),
                    "/large" => (4, 10_000),
                    _ => (100, 100),
                };
                for n in 0..fields {
                    let name = http::HeaderName::try_from(format!("x-{n}")).unwrap();
                    let value = "a".repeat(size).try_into().unwrap();
                    answer.headers_mut().insert(name, value);
                }
                let _sent = respond.send_response(answer, true);
            })
            .await;
        for (path, code) in [("/many", Some(Code::PU07)), ("/large", Some(Code::PU07)), ("/", None)]
        {
            let outcome = bed.send(&instance.h2c(), get(path)).await;
            assert_eq!(outcome.err().map(|refused| refused.failure.code), code, "{path}");
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn both_directions_of_one_stream_flow_at_once() {
    run(async |bed: Bed| {
        let instance = bed.h2_instance(server(), echo).await;
        let (feed, body) = fed();
        let mut response = bed.send(&instance.h2c(), post(body)).await.unwrap();
        let body = response.body_mut();
        assert_eq!(next_frame(body).await.unwrap().unwrap().into_data().unwrap(), "/");
        for message in ["one", "two", "three"] {
            feed.send(Ok(message.into())).await.unwrap();
            assert_eq!(next_frame(body).await.unwrap().unwrap().into_data().unwrap(), message);
        }
        drop(feed);
        assert!(next_frame(body).await.unwrap().unwrap().is_trailers());
        assert!(body.is_end_stream());
    });
}

#[test]
fn a_connection_that_goes_away_is_replaced_and_no_request_is_lost() {
    run(async |bed: Bed| {
        let tasks = bed.tasks.clone();
        let instance = bed
            .instance(move |stream| {
                let tasks = tasks.clone();
                async move {
                    let mut h2 = server().handshake(stream).await.unwrap();
                    let mut left = 10;
                    while let Some(Ok((request, respond))) = h2.accept().await {
                        tasks.spawn_local(echo(request, respond));
                        left -= 1;
                        if left == 0 {
                            h2.graceful_shutdown();
                        }
                    }
                }
            })
            .await;
        let target = instance.h2c();
        for round in 0..20 {
            let requests = (0..10).map(async |n| {
                let path = format!("/{round}/{n}");
                assert_eq!(text(send_until_processed(&bed, &target, &path).await).await, path);
            });
            join_all(requests).await;
        }
        assert!((10..=40).contains(&instance.accepted.get()), "{}", instance.accepted.get());
    });
}

#[test]
fn refused_streams_may_go_elsewhere() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |request, mut respond| async move {
                let reason = match request.uri().path() {
                    "/refused" => Reason::REFUSED_STREAM,
                    _ => Reason::INTERNAL_ERROR,
                };
                respond.send_reset(reason);
            })
            .await;
        for (path, retry) in [("/refused", Retry::Unsent), ("/broken", Retry::Idempotent)] {
            let refused = bed.send(&instance.h2c(), get(path)).await.err().unwrap();
            assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU02, retry));
        }
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn more_streams_than_the_peer_allows_wait_their_turn_and_the_line_is_bounded() {
    let limits = config::Limits { upstream_streams_max: 5, ..config::Limits::default() };
    run_with(Settings { limits, ..Settings::default() }, async |bed: Bed| {
        let (open, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let go = Rc::new(Semaphore::new(1));
        let of_server = (open.clone(), most.clone(), go.clone());
        let mut builder = server();
        builder.max_concurrent_streams(2);
        let instance = bed
            .h2_instance(builder, move |_, mut respond| {
                let (open, most, go) = of_server.clone();
                async move {
                    open.set(open.get() + 1);
                    most.set(most.get().max(open.get()));
                    go.acquire().await.unwrap().forget();
                    open.set(open.get() - 1);
                    respond.send_response(answer(204), true).unwrap();
                }
            })
            .await;
        let target = instance.h2c();
        // Make the connection first, so that all of them meet the same limit.
        bed.get(&target).await.unwrap();
        let refused = Rc::new(Cell::new(0));
        let requests = (0..10).map(async |_| {
            let outcome = bed.get(&target).await;
            if let Err(Refused { failure, .. }) = &outcome {
                assert_eq!(failure.retry, Retry::Unsent);
                refused.set(refused.get() + 1);
            }
            outcome.is_ok()
        });
        let going = async {
            while (open.get(), refused.get()) != (2, 3) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            go.add_permits(10);
        };
        let (served, ()) = tokio::join!(join_all(requests), going);
        assert_eq!(served.iter().filter(|is_served| **is_served).count(), 7);
        assert_eq!(most.get(), 2);
    });
}

#[test]
fn cancelling_resets_the_stream_at_once_and_leaves_the_others_alone() {
    run(async |bed: Bed| {
        let (seen, mut resets) = mpsc::channel(4);
        let instance = bed
            .h2_instance(server(), move |request, mut respond| {
                let seen = seen.clone();
                async move {
                    if request.uri().path() == "/head" {
                        respond.send_response(answer(200), false).unwrap();
                    }
                    let reason = poll_fn(|cx| respond.poll_reset(cx)).await;
                    seen.send(reason).await.unwrap();
                }
            })
            .await;
        let target = instance.h2c();
        let within = Duration::from_millis(100);
        assert!(timeout(within, bed.send(&target, get("/"))).await.is_err());
        timeout(within, resets.recv()).await.unwrap().unwrap().expect("a reset");
        assert_eq!(instance.accepted.get(), 1);
        let connection_before = instance.accepted.get();

        // With a body of a request on its way, a task of its own that sends it.
        let instance = bed
            .h2_instance(server(), |mut request, mut respond| async move {
                let mut sending = respond.send_response(answer(200), false).unwrap();
                while let Some(Ok(_)) = request.body_mut().data().await {}
                let _end = sending.send_data(Bytes::new(), true);
            })
            .await;
        let (feed, body) = fed();
        let response = bed.send(&instance.h2c(), post(body)).await.unwrap();
        drop(response);
        timeout(within, feed.closed()).await.expect("the request body is dropped, too");
        assert_eq!((connection_before, instance.accepted.get()), (1, 1));
    });
}

#[test]
fn a_client_that_breaks_off_its_upload_is_not_taken_for_one_that_finished() {
    run(async |bed: Bed| {
        let (seen, mut ends) = mpsc::channel(4);
        let instance = bed
            .h2_instance(server(), move |mut request, mut respond| {
                let seen = seen.clone();
                async move {
                    let early = request.uri().path() == "/early";
                    let _sending = early.then(|| respond.send_response(answer(200), false));
                    let mut is_clean = true;
                    while let (true, Some(data)) = (is_clean, request.body_mut().data().await) {
                        is_clean = data.is_ok();
                    }
                    seen.send(is_clean).await.unwrap();
                }
            })
            .await;
        for path in ["/late", "/early"] {
            let (feed, body) = fed();
            let mut request = post(body);
            *request.uri_mut() = path.parse().unwrap();
            feed.send(Ok("half".into())).await.unwrap();
            let target = instance.h2c();
            let sending = bed.send(&target, request);
            let _response = match path {
                "/late" => {
                    let breaking = feed.send(Err(Failure::new(Code::PP09)));
                    let (outcome, fed) = tokio::join!(sending, breaking);
                    fed.unwrap();
                    assert_eq!(outcome.err().unwrap().failure.code, Code::PP09);
                    None
                }
                _ => {
                    let response = sending.await.unwrap();
                    feed.send(Err(Failure::new(Code::PP09))).await.unwrap();
                    Some(response)
                }
            };
            assert!(!ends.recv().await.unwrap(), "{path}");
        }
    });
}

#[test]
fn many_cancelled_requests_cost_nobody_else_the_connection() {
    run(async |bed: Bed| {
        let go = Rc::new(Notify::new());
        let of_server = go.clone();
        let mut builder = server();
        builder.max_concurrent_streams(1000);
        let instance = bed
            .h2_instance(builder, move |request, mut respond| {
                let go = of_server.clone();
                async move {
                    match request.uri().path() {
                        "/long" => go.notified().await,
                        "/hang" => std::future::pending().await,
                        _ => {}
                    }
                    let mut sending = respond.send_response(answer(200), false).unwrap();
                    sending.send_data("whole".into(), true).unwrap();
                }
            })
            .await;
        let target = instance.h2c();
        let mut long = Box::pin(bed.send(&target, get("/long")));
        assert!(futures_util::poll!(&mut long).is_pending());
        for is_seen in [true, false, true] {
            let mut cancelled: Vec<_> =
                (0..300).map(|_| Box::pin(bed.send(&target, get("/hang")))).collect();
            for request in &mut cancelled {
                assert!(futures_util::poll!(request).is_pending());
            }
            assert!(futures_util::poll!(&mut long).is_pending());
            // Servers count resets of streams that they have not even looked at.
            if is_seen {
                text(bed.send(&target, get("/")).await.unwrap()).await;
            }
            for request in &mut cancelled {
                assert!(futures_util::poll!(request).is_pending());
            }
            drop(cancelled);
            // Others are served at once, on this connection or a new one.
            let next = timeout(Duration::from_millis(500), bed.send(&target, get("/")));
            assert_eq!(text(next.await.unwrap().unwrap()).await, "whole");
        }
        go.notify_one();
        assert_eq!(text(long.await.unwrap()).await, "whole");
        assert!(instance.accepted.get() <= 4, "{}", instance.accepted.get());
    });
}

#[test]
fn a_flood_of_cancelled_requests_ends_with_their_connection() {
    run(async |bed: Bed| {
        let (ended, mut seen) = mpsc::channel(4);
        let tasks = bed.tasks.clone();
        let instance = bed
            .instance(move |stream| {
                let (ended, tasks) = (ended.clone(), tasks.clone());
                async move {
                    let mut builder = server();
                    builder.max_concurrent_streams(1000);
                    let mut h2 = builder.handshake::<_, Bytes>(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = h2.accept().await {
                        tasks.spawn_local(async move {
                            std::future::pending::<()>().await;
                            drop((request, respond));
                        });
                    }
                    ended.send(()).await.unwrap();
                }
            })
            .await;
        let target = instance.h2c();
        bed.shared(&target).await;
        let mut requests: Vec<_> = (0..300).map(|_| Box::pin(bed.get(&target))).collect();
        for request in &mut requests {
            assert!(futures_util::poll!(request).is_pending());
        }
        drop(requests);
        // At the pace of resets it would take six seconds.
        timeout(Duration::from_millis(500), seen.recv()).await.unwrap().unwrap();
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn cancelled_streams_above_the_pace_end_and_free_their_slots() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |_, mut respond| async move {
                let mut sending = respond.send_response(answer(200), false).unwrap();
                sending.send_data(vec![0; 100_000].into(), false).unwrap();
                let _reset = poll_fn(|cx| sending.poll_reset(cx)).await;
            })
            .await;
        let target = instance.h2c();
        // More than a burst, fewer than what retires the connection.
        let responses = join_all((0..40).map(|_| bed.get(&target))).await;
        let connection = bed
            .upstreams
            .connections
            .get(&Key::Instance(instance.address), || async { panic!("it is there") })
            .await
            .unwrap();
        drop(responses);
        assert!(!connection.is_idle());
        timeout(Duration::from_secs(2), async {
            while !connection.is_idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("every slot comes back");
        assert!(connection.is_usable());
        assert_eq!(instance.accepted.get(), 1);
    });
}

#[test]
fn a_reader_that_stops_holds_one_window_and_the_others_go_on() {
    run(async |bed: Bed| {
        let sent = Rc::new(Cell::new(0));
        let of_server = sent.clone();
        let instance = bed
            .h2_instance(server(), move |request, mut respond| {
                let sent = of_server.clone();
                async move {
                    let mut sending = respond.send_response(answer(200), false).unwrap();
                    if request.uri().path() == "/small" {
                        sending.send_data("small".into(), true).unwrap();
                        return;
                    }
                    loop {
                        sending.reserve_capacity(16 * 1024);
                        let Some(Ok(room)) = poll_fn(|cx| sending.poll_capacity(cx)).await else {
                            return;
                        };
                        sent.set(sent.get() + room);
                        sending.send_data(vec![0; room].into(), false).unwrap();
                    }
                }
            })
            .await;
        let target = instance.h2c();
        let mut response = bed.get(&target).await.unwrap();
        next_frame(response.body_mut()).await.unwrap().unwrap();
        for _ in 0..20 {
            let small = bed.send(&target, get("/small")).await.unwrap();
            assert_eq!(text(small).await, "small");
        }
        let held = sent.get();
        assert!((200_000..400_000).contains(&held), "{held}");
        // The control: who reads gets more.
        let mut read = 0;
        while read < 2_000_000 {
            let frame = next_frame(response.body_mut()).await.unwrap().unwrap();
            read += frame.into_data().unwrap().len();
        }
        assert!(sent.get() > 2_000_000);
    });
}

#[test]
fn an_upload_waits_for_the_instance() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |mut request, mut respond| async move {
                let mut sending = respond.send_response(answer(200), false).unwrap();
                // Takes nothing until it is reset.
                let _reset = poll_fn(|cx| sending.poll_reset(cx)).await;
                while let Some(Ok(_)) = request.body_mut().data().await {}
            })
            .await;
        let (feed, body) = fed();
        let response = bed.send(&instance.h2c(), post(body)).await.unwrap();
        let mut fed = 0;
        let chunk = Bytes::from(vec![0; 16 * 1024]);
        while let Ok(sent) = timeout(Duration::from_millis(50), feed.send(Ok(chunk.clone()))).await
        {
            sent.unwrap();
            fed += chunk.len();
            assert!(fed < 1 << 20, "the upload has no bound");
        }
        // A window of 64 KiB, a send buffer, a frame on its way and one in the channel.
        assert!((64 * 1024..256 * 1024).contains(&fed), "{fed}");
        drop(response);
    });
}

/// h2 itself would end the connection with the 101st, and the streams that go on with it.
#[test]
fn empty_frames_of_an_instance_cost_a_connection_and_no_request() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |request, mut respond| async move {
                let mut sending = respond.send_response(answer(200), false).unwrap();
                sending.send_data("data".into(), false).unwrap();
                if request.uri().path() == "/long" {
                    // As long as another one may bring empty frames.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                sending.send_data(Bytes::new(), false).unwrap();
                sending.send_data(" and its end".into(), true).unwrap();
            })
            .await;
        let target = instance.h2c();
        for _ in 0..4 {
            let long = bed.send(&target, get("/long")).await.unwrap();
            for _ in 0..49 {
                assert_eq!(text(bed.get(&target).await.unwrap()).await, "data and its end");
            }
            assert_eq!(text(long).await, "data and its end");
        }
        assert_eq!(instance.accepted.get(), 4);
    });
}

#[test]
fn an_instance_that_hangs_runs_into_its_deadlines() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |request, mut respond| async move {
                let mut held = None;
                if request.uri().path() == "/half" {
                    let mut sending = respond.send_response(answer(200), false).unwrap();
                    sending.send_data("half".into(), false).unwrap();
                    held = Some(sending);
                }
                std::future::pending::<()>().await;
                drop(held);
            })
            .await;
        let target = instance.h2c();
        let response = bed.send(&target, get("/half")).await.unwrap();
        tokio::time::pause();
        let start = Instant::now();
        let refused = bed.get(&target).await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU06, Retry::Never));
        assert_eq!(start.elapsed().as_secs(), 14);
        let failure = response.into_body().collect().await.err().unwrap();
        assert_eq!((failure.code, start.elapsed().as_secs()), (Code::PU05, 74));
    });
}

#[test]
fn a_body_that_breaks_off_is_an_error_and_never_an_end() {
    run(async |bed: Bed| {
        let instance = bed
            .h2_instance(server(), |request, mut respond| async move {
                let mut sending = respond.send_response(answer(200), false).unwrap();
                sending.send_data("half".into(), false).unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
                match request.uri().path() {
                    "/reset" => sending.send_reset(Reason::INTERNAL_ERROR),
                    _ => drop(sending),
                }
            })
            .await;
        for path in ["/reset", "/dropped"] {
            let response = bed.send(&instance.h2c(), get(path)).await.unwrap();
            let failure = response.into_body().collect().await.expect_err(path);
            assert_eq!(failure.code, Code::PU05);
        }

        let instance = bed
            .instance(|stream| async move {
                let mut h2 = server().handshake(stream).await.unwrap();
                let (_request, mut respond) = h2.accept().await.unwrap().unwrap();
                let mut sending = respond.send_response(answer(200), false).unwrap();
                sending.send_data(Bytes::from("half"), false).unwrap();
                let _until =
                    timeout(Duration::from_millis(20), poll_fn(|cx| h2.poll_closed(cx))).await;
            })
            .await;
        let response = bed.get(&instance.h2c()).await.unwrap();
        assert_eq!(response.into_body().collect().await.err().unwrap().code, Code::PU05);
    });
}

#[test]
fn an_idle_connection_closes_at_its_deadline_or_when_told() {
    run(async |bed: Bed| {
        let closed = Rc::new(Cell::new(0));
        let (of_server, tasks) = (closed.clone(), bed.tasks.clone());
        let instance = bed
            .instance(move |stream| {
                let (closed, tasks) = (of_server.clone(), tasks.clone());
                async move {
                    let mut h2 = server().handshake(stream).await.unwrap();
                    while let Some(accepted) = h2.accept().await {
                        let (request, respond) = accepted.expect("it closes in order");
                        tasks.spawn_local(echo(request, respond));
                    }
                    closed.set(closed.get() + 1);
                }
            })
            .await;
        let target = instance.h2c();
        let is_closed = async |n| {
            while closed.get() < n {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        text(bed.get(&target).await.unwrap()).await;
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(59)).await;
        text(bed.get(&target).await.unwrap()).await;
        let start = Instant::now();
        is_closed(1).await;
        assert!((59..=61).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        tokio::time::resume();

        text(bed.get(&target).await.unwrap()).await;
        bed.upstreams.close_idle();
        is_closed(2).await;

        // Told to drain, a connection in use goes on until its last stream has ended.
        let (feed, body) = fed();
        let response = bed.send(&target, post(body)).await.unwrap();
        bed.upstreams.close_idle();
        bed.upstreams.drain();
        feed.send(Ok("still here".into())).await.unwrap();
        drop(feed);
        assert_eq!(text(response).await, "/still here");
        is_closed(3).await;
        assert_eq!(instance.accepted.get(), 3);
    });
}
