//! Any address of the prefixes, any port: one socket.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use ebpf_filter::{Config, Family, Steering};

use crate::kernel::alone;

const INSIDE: [&str; 6] = [
    "198.51.100.0:1",
    "198.51.100.77:443",
    "198.51.100.255:65535",
    "[2001:db8::]:22",
    "[2001:db8:1:2:3:4:5:6]:443",
    "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
];

fn sockets() -> [TcpListener; 2] {
    ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap())
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to, Duration::from_secs(2))
}

#[test]
fn any_address_and_port_of_the_prefixes_reaches_the_one_socket() {
    alone(|own| {
        let mut steering = Steering::open(&own.config()).unwrap();
        let [v4, v6] = sockets();
        steering.set_socket(Family::V4, &v4).unwrap();
        steering.set_socket(Family::V6, &v6).unwrap();
        for to in INSIDE {
            let to: SocketAddr = to.parse().unwrap();
            let mut client = connect(to).unwrap();
            let listener = if to.is_ipv4() { &v4 } else { &v6 };
            let (mut accepted, _) = listener.accept().unwrap();
            assert_eq!(accepted.local_addr().unwrap(), to, "the original destination");
            client.write_all(b"hello").unwrap();
            let mut said = [0; 5];
            accepted.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"hello");
        }
    });
}

#[test]
fn other_addresses_are_found_as_ever() {
    alone(|own| {
        let mut steering = Steering::open(&own.config()).unwrap();
        let [v4, _] = sockets();
        steering.set_socket(Family::V4, &v4).unwrap();
        let other = TcpListener::bind("127.0.0.2:0").unwrap();
        let to = other.local_addr().unwrap();
        let client = connect(to).unwrap();
        let (accepted, from) = other.accept().unwrap();
        assert_eq!((accepted.local_addr().unwrap(), from), (to, client.local_addr().unwrap()));
        let nothing = SocketAddr::new([127, 0, 0, 3].into(), to.port());
        assert_eq!(connect(nothing).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn without_a_socket_of_ours_a_connection_is_refused_even_where_another_program_listens() {
    alone(|own| {
        // As sshd would.
        let wildcard = TcpListener::bind("[::]:0").unwrap();
        let port = wildcard.local_addr().unwrap().port();
        let hosts: [IpAddr; 2] = ["198.51.100.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        let mut steering = Steering::open(&own.config()).unwrap();
        let refused = || {
            for host in hosts {
                let error = connect(SocketAddr::new(host, port)).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{host}");
            }
        };
        refused();
        let [v4, v6] = sockets();
        steering.set_socket(Family::V4, &v4).unwrap();
        steering.set_socket(Family::V6, &v6).unwrap();
        for host in hosts {
            connect(SocketAddr::new(host, port)).unwrap();
        }
        // The process dies: its sockets leave by themselves.
        drop((v4, v6));
        refused();
        // The control: without steering the wildcard socket gets them.
        drop(steering);
        ebpf_filter::pins::detach(&own.pins()).unwrap();
        for host in hosts {
            connect(SocketAddr::new(host, port)).unwrap();
        }
    });
}

#[test]
fn a_new_socket_takes_the_place_of_the_old_one_at_once() {
    alone(|own| {
        let mut steering = Steering::open(&own.config()).unwrap();
        let [old, _] = sockets();
        steering.set_socket(Family::V4, &old).unwrap();
        let to = "198.51.100.9:9".parse().unwrap();
        let _before = connect(to).unwrap();
        let new = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut successor = Steering::open(&own.config()).unwrap();
        successor.set_socket(Family::V4, &new).unwrap();
        let _after = connect(to).unwrap();
        assert_eq!(
            old.accept().unwrap().0.local_addr().unwrap(),
            to,
            "what began on it is its own"
        );
        assert_eq!(new.accept().unwrap().0.local_addr().unwrap(), to);
        successor.clear(Family::V4).unwrap();
        assert_eq!(connect(to).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        successor.clear(Family::V4).unwrap();
    });
}

#[test]
fn datagrams_are_steered_to_a_socket_for_them_and_else_left_alone() {
    alone(|own| {
        let mut steering = Steering::open(&own.config()).unwrap();
        let [bound, ours] = ["0.0.0.0:0", "127.0.0.1:0"].map(|at| UdpSocket::bind(at).unwrap());
        for socket in [&bound, &ours] {
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        }
        let to = SocketAddr::new([198, 51, 100, 3].into(), bound.local_addr().unwrap().port());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut said = [0; 8];
        client.send_to(b"as ever", to).unwrap();
        assert_eq!(bound.recv(&mut said).unwrap(), 7);
        steering.set_udp_socket(Family::V4, &ours).unwrap();
        client.send_to(b"steered!", to).unwrap();
        assert_eq!(ours.recv(&mut said).unwrap(), 8);
    });
}

#[test]
fn prefixes_that_are_steered_no_more_are_left() {
    alone(|own| {
        let mut steering = Steering::open(&own.config()).unwrap();
        let [v4, _] = sockets();
        steering.set_socket(Family::V4, &v4).unwrap();
        let prefixes = vec!["198.51.100.0/25".parse().unwrap()];
        let fewer = Steering::open(&Config { prefixes, ..own.config() }).unwrap();
        assert_eq!(fewer.prefixes().len(), 1);
        connect("198.51.100.127:7".parse().unwrap()).unwrap();
        let wildcard = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = wildcard.local_addr().unwrap().port();
        connect(SocketAddr::new([198, 51, 100, 128].into(), port)).unwrap();
        wildcard.accept().unwrap();
    });
}
