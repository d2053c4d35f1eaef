use super::*;

fn connect_head() -> Request<()> {
    let mut head = Request::connect("instance-1:5432").body(()).unwrap();
    head.headers_mut().insert("ferrule-hops", "1".parse().unwrap());
    head
}

fn answer(status: u16) -> Response<()> {
    Response::builder().status(status).body(()).unwrap()
}

/// Echoes until the other side ends, then says goodbye.
async fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            n => stream.write_all(&buffer[..n]).await.unwrap(),
        }
    }
    stream.write_all(b"bye").await.unwrap();
}

async fn h2_echo(mut request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut sending = respond.send_response(answer(200), false).unwrap();
    while let Some(bytes) = request.body_mut().data().await {
        let Ok(bytes) = bytes else { return };
        request.body_mut().flow_control().release_capacity(bytes.len()).unwrap();
        sending.send_data(bytes, false).unwrap();
    }
    sending.send_data("bye".into(), true).unwrap();
}

fn extended() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.enable_connect_protocol();
    builder
}

async fn both_directions_end_one_by_one(mut tunnel: Tunnel) {
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for sent in [b"ping".to_vec(), large] {
        let mut received = vec![0; sent.len()];
        let (mut reader, mut writer) = tokio::io::split(tunnel);
        let (read, written) =
            tokio::join!(reader.read_exact(&mut received), writer.write_all(&sent));
        read.unwrap();
        written.unwrap();
        assert!(received == sent);
        tunnel = reader.unsplit(writer);
    }
    tunnel.shutdown().await.unwrap();
    let mut rest = String::new();
    tunnel.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
}

#[test]
fn a_tunnel_to_an_instance_ends_one_direction_at_a_time() {
    run(async |bed: Bed| {
        let instance = bed.instance(echo).await;
        let tunnel = bed.upstreams.connect(&instance.http1(), connect_head()).await.unwrap();
        both_directions_end_one_by_one(tunnel).await;
    });
}

#[test]
fn a_tunnel_over_the_mesh_ends_one_direction_at_a_time() {
    run(async |bed: Bed| {
        let (seen, mut heads) = mpsc::channel(4);
        let (node, accepted) = bed
            .node(extended(), move |request, respond| {
                let seen = seen.clone();
                async move {
                    let fields = request.headers().clone();
                    seen.send((request.method().clone(), request.uri().clone(), fields))
                        .await
                        .unwrap();
                    h2_echo(request, respond).await;
                }
            })
            .await;
        for _ in 0..2 {
            let tunnel = bed.upstreams.connect(&node, connect_head()).await.unwrap();
            both_directions_end_one_by_one(tunnel).await;
            let (method, uri, fields) = heads.recv().await.unwrap();
            assert_eq!((method, uri.to_string().as_str()), (Method::CONNECT, "instance-1:5432"));
            assert_eq!(fields["ferrule-hops"], "1");
        }
        assert_eq!(accepted.get(), 1);
        // Both directions have ended: the stream is given back.
        let connection = bed.shared(&node).await;
        assert!(connection.is_idle());
    });
}

#[test]
fn the_instance_may_end_its_side_first() {
    run(async |bed: Bed| {
        let (seen, mut received) = mpsc::channel(1);
        let of_node = seen.clone();
        let instance = bed
            .instance(move |mut stream| {
                let seen = seen.clone();
                async move {
                    stream.write_all(b"first").await.unwrap();
                    stream.shutdown().await.unwrap();
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await.unwrap();
                    seen.send(rest).await.unwrap();
                }
            })
            .await;
        let (node, _) = bed
            .node(extended(), move |mut request, mut respond| {
                let seen = of_node.clone();
                async move {
                    let mut sending = respond.send_response(answer(200), false).unwrap();
                    sending.send_data("first".into(), true).unwrap();
                    let mut rest = Vec::new();
                    while let Some(Ok(bytes)) = request.body_mut().data().await {
                        rest.extend_from_slice(&bytes);
                    }
                    seen.send(rest).await.unwrap();
                }
            })
            .await;
        for target in [instance.http1(), node] {
            let mut tunnel = bed.upstreams.connect(&target, connect_head()).await.unwrap();
            let mut first = String::new();
            tunnel.read_to_string(&mut first).await.unwrap();
            assert_eq!(first, "first");
            tunnel.write_all(b"second").await.unwrap();
            tunnel.shutdown().await.unwrap();
            assert_eq!(received.recv().await.unwrap(), b"second");
        }
    });
}

#[test]
fn a_tunnel_that_is_dropped_breaks_visibly() {
    run(async |bed: Bed| {
        let (seen, mut ends) = mpsc::channel(1);
        let of_node = seen.clone();
        let instance = bed
            .instance(move |mut stream| {
                let seen = seen.clone();
                async move {
                    stream.read_u8().await.unwrap();
                    let broke = stream.read_u8().await.err().map(|error| error.kind());
                    seen.send(broke == Some(std::io::ErrorKind::ConnectionReset)).await.unwrap();
                }
            })
            .await;
        let (node, _) = bed
            .node(extended(), move |mut request, mut respond| {
                let seen = of_node.clone();
                async move {
                    let _sending = respond.send_response(answer(200), false).unwrap();
                    request.body_mut().data().await.unwrap().unwrap();
                    seen.send(matches!(request.body_mut().data().await, Some(Err(_))))
                        .await
                        .unwrap();
                }
            })
            .await;
        for target in [instance.http1(), node] {
            let mut tunnel = bed.upstreams.connect(&target, connect_head()).await.unwrap();
            tunnel.write_all(b"h").await.unwrap();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            drop(tunnel);
            let within = Duration::from_millis(100);
            assert!(timeout(within, ends.recv()).await.unwrap().unwrap(), "reset, not ended");
        }
    });
}

#[test]
fn a_node_declines_a_tunnel_in_its_own_words() {
    run(async |bed: Bed| {
        let (node, _) = bed
            .node(extended(), |request, mut respond| async move {
                let mut refusal = answer(503);
                let told = request.headers()["tell"].clone();
                refusal.headers_mut().insert("ferrule-error", told);
                respond.send_response(refusal, true).unwrap();
            })
            .await;
        for (told, code, retry) in [
            ("PL01", Code::PL01, Retry::Unsent),
            ("PR02", Code::PR02, Retry::Unsent),
            ("PC01", Code::PC01, Retry::Never),
            ("nonsense", Code::PU02, Retry::Never),
        ] {
            let mut head = connect_head();
            head.headers_mut().insert("tell", told.parse().unwrap());
            let failure = bed.upstreams.connect(&node, head).await.err().unwrap();
            assert_eq!((failure.code, failure.retry), (code, retry));
        }
    });
}

#[test]
fn nobody_there_to_tunnel_to_is_told_as_it_is() {
    run(async |bed: Bed| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let instance = Target { address, transport: Transport::Http1 { reuse: true } };
        let failure = bed.upstreams.connect(&instance, connect_head()).await.err().unwrap();
        assert_eq!((failure.code, failure.retry), (Code::PC01, Retry::Unsent));
        let failure = bed.upstreams.connect(&node_at(address), connect_head()).await.err().unwrap();
        assert_eq!((failure.code, failure.retry), (Code::PU03, Retry::Unsent));
    });
}

fn websocket() -> Request<()> {
    let request = Request::get("/socket").header("host", "app.example");
    request.header("connection", "upgrade").header("upgrade", "websocket").body(()).unwrap()
}

#[test]
fn an_instance_switches_and_bytes_behind_its_head_belong_to_the_tunnel() {
    run(async |bed: Bed| {
        let instance = bed
            .instance(|mut stream| async move {
                let head = read_head(&mut stream).await.unwrap();
                assert!(head.contains("upgrade: websocket\r\n"), "{head}");
                let switched = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                      upgrade: websocket\r\n\r\nhello ";
                stream.write_all(switched).await.unwrap();
                echo(stream).await;
            })
            .await;
        let outcome = bed.upstreams.upgrade(&instance.http1(), websocket(), "websocket").await;
        let Upgrade::Switched(head, mut tunnel) = outcome.unwrap() else { panic!("it switches") };
        assert_eq!(head.status(), 101);
        tunnel.write_all(b"world").await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut all = String::new();
        tunnel.read_to_string(&mut all).await.unwrap();
        assert_eq!(all, "hello worldbye");
        assert_eq!(bed.upstreams.pool.len(), 0);
    });
}

#[test]
fn an_instance_may_answer_instead_of_switching() {
    run(async |bed: Bed| {
        let instance = bed.answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
        let (node, _) = bed
            .node(extended(), |_, mut respond| async move {
                let mut sending = respond.send_response(answer(403), false).unwrap();
                sending.send_data("no".into(), true).unwrap();
            })
            .await;
        for target in [instance.http1(), node] {
            let outcome = bed.upstreams.upgrade(&target, websocket(), "websocket").await.unwrap();
            let Upgrade::Answered(response) = outcome else { panic!("it does not switch") };
            assert_eq!(response.status(), 403);
            assert_eq!(text(response).await, "no");
        }
    });
}

#[test]
fn an_upgrade_over_the_mesh_is_an_extended_connect() {
    run(async |bed: Bed| {
        let (node, _) = bed
            .node(extended(), |request, respond| async move {
                assert_eq!(request.method(), Method::CONNECT);
                let protocol = request.extensions().get::<Protocol>().unwrap();
                assert_eq!(protocol.as_str(), "websocket");
                assert_eq!(request.uri(), "http://app.example/socket");
                assert!(!request.headers().contains_key("upgrade"));
                h2_echo(request, respond).await;
            })
            .await;
        let outcome = bed.upstreams.upgrade(&node, websocket(), "websocket").await.unwrap();
        let Upgrade::Switched(head, tunnel) = outcome else { panic!("it switches") };
        assert_eq!(head.status(), 200);
        both_directions_end_one_by_one(tunnel).await;

        // The control: a peer that does not offer it.
        let (node, _) = bed.node(h2::server::Builder::new(), h2_echo).await;
        let failure = bed.upstreams.upgrade(&node, websocket(), "websocket").await.err().unwrap();
        assert_eq!(failure.code, Code::PP07);
    });
}

#[test]
fn a_node_that_falls_silent_is_noticed_while_somebody_waits_for_it() {
    let timeouts =
        config::Timeouts { response_head: Duration::from_secs(600), ..config::Timeouts::default() };
    run_with(Settings { timeouts, ..Settings::default() }, async |bed: Bed| {
        let node = bed
            .silent_node(|tls| async move {
                std::future::pending::<()>().await;
                drop(tls);
            })
            .await;
        let connection = bed.shared(&node).await;
        let sending = bed.send(&node, get("/"));
        tokio::time::pause();
        let start = Instant::now();
        let refused = sending.await.err().unwrap();
        assert_eq!((refused.failure.code, refused.failure.retry), (Code::PU02, Retry::Idempotent));
        assert!((29..=31).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert!(!connection.is_usable());
    });
}

/// A node whose first connections end with GOAWAY before the first stream that they see, with which
/// stream as the last one; how many connections it had.
async fn leaving(bed: &Bed, connections: usize, last_stream: u32) -> (Target, Rc<Cell<usize>>) {
    let (tasks, count) = (bed.tasks.clone(), Rc::new(Cell::new(0)));
    let seen = count.clone();
    let node = bed.instance(move |stream| {
        let (tasks, seen) = (tasks.clone(), seen.clone());
        async move {
            let mut tls = certificates().0.accept(stream).await.unwrap();
            seen.set(seen.get() + 1);
            if seen.get() > connections {
                let mut h2 = extended().handshake(tls).await.unwrap();
                while let Some(Ok((request, respond))) = h2.accept().await {
                    tasks.spawn_local(h2_echo(request, respond));
                }
                return;
            }
            // SETTINGS with ENABLE_CONNECT_PROTOCOL, so that both kinds of CONNECT are sent.
            tls.write_all(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1]).await.unwrap();
            tls.flush().await.unwrap();
            headers(&mut tls).await;
            let mut goaway = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
            goaway.extend(last_stream.to_be_bytes());
            goaway.extend([0; 4]);
            tls.write_all(&goaway).await.unwrap();
            tls.flush().await.unwrap();
            drop(tls.read_to_end(&mut Vec::new()).await);
        }
    });
    (node_at(node.await.address), count)
}

/// Reads until a HEADERS frame has come.
async fn headers(tls: &mut TlsServerStream) {
    tls.read_exact(&mut [0; 24]).await.unwrap(); // the preface
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        tls.read_exact(&mut vec![0; length]).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}

#[test]
fn a_tunnel_that_meets_the_end_of_its_connection_is_opened_on_the_next() {
    run(async |bed: Bed| {
        for connections in 1..=STALE_MAX {
            let (node, count) = leaving(&bed, connections, 0).await;
            let tunnel = bed.upstreams.connect(&node, connect_head()).await.unwrap();
            both_directions_end_one_by_one(tunnel).await;
            assert_eq!(count.get(), connections + 1);
        }
        let (node, count) = leaving(&bed, 1, 0).await;
        let outcome = bed.upstreams.upgrade(&node, websocket(), "websocket").await.unwrap();
        let Upgrade::Switched(_, tunnel) = outcome else { panic!("it switches") };
        both_directions_end_one_by_one(tunnel).await;
        assert_eq!(count.get(), 2);
    });
}

#[test]
fn a_node_that_always_leaves_is_not_asked_for_ever() {
    run(async |bed: Bed| {
        let (node, count) = leaving(&bed, usize::MAX, 0).await;
        let failure = bed.upstreams.connect(&node, connect_head()).await.err().unwrap();
        assert_eq!((failure.code, failure.retry), (Code::PU02, Retry::Unsent));
        assert_eq!(count.get(), STALE_MAX + 1);
    });
}
