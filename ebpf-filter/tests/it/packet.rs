//! Frames, built by hand so that they can be wrong.

use std::net::IpAddr;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;
pub(crate) const ECE: u8 = 0x40;
pub(crate) const CWR: u8 = 0x80;

/// A frame in parts.
#[derive(Clone)]
pub(crate) struct Frame {
    tags: Vec<u16>,
    destination: IpAddr,
    version: u8,
    header_words: Option<u8>,
    options: Vec<u8>,
    fragment: u16,
    extensions: Vec<(u8, Vec<u8>)>,
    protocol: u8,
    payload: Vec<u8>,
    bytes: usize,
}

pub(crate) fn tcp(destination: &str, port: u16, flags: u8) -> Frame {
    let mut header = vec![0; 20];
    header[..2].copy_from_slice(&40_000_u16.to_be_bytes());
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = flags;
    ip(destination, 6, header)
}

pub(crate) fn syn(destination: &str, port: u16) -> Frame {
    tcp(destination, port, SYN)
}

pub(crate) fn udp(destination: &str, port: u16) -> Frame {
    let mut header = vec![0; 8];
    header[2..4].copy_from_slice(&port.to_be_bytes());
    header[4..6].copy_from_slice(&8_u16.to_be_bytes());
    ip(destination, 17, header)
}

pub(crate) fn ip(destination: &str, protocol: u8, payload: Vec<u8>) -> Frame {
    let destination: IpAddr = destination.parse().expect("an address");
    Frame {
        tags: vec![],
        destination,
        version: if destination.is_ipv4() { 4 } else { 6 },
        header_words: None,
        options: vec![],
        fragment: 0,
        extensions: vec![],
        protocol,
        payload,
        bytes: usize::MAX,
    }
}

/// Not IP.
pub(crate) fn ethernet(kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), payload].concat()
}

// === impl Frame ===

impl Frame {
    /// Puts a VLAN tag of this type around it.
    pub(crate) fn tag(mut self, kind: u16) -> Self {
        self.tags.insert(0, kind);
        self
    }

    /// Another version than the EtherType's.
    pub(crate) fn version(mut self, version: u8) -> Self {
        self.version = version;
        self
    }

    /// IPv4 options: `words` times four bytes.
    pub(crate) fn options(mut self, words: usize) -> Self {
        self.options = vec![1; words * 4];
        self
    }

    /// Another header length than the true one.
    pub(crate) fn header_words(mut self, words: u8) -> Self {
        self.header_words = Some(words);
        self
    }

    /// The fragment word: flags and offset of IPv4.
    pub(crate) fn fragment(mut self, word: u16) -> Self {
        self.fragment = word;
        self
    }

    /// An IPv6 extension header: its kind, and all of it but the first byte.
    pub(crate) fn extension(mut self, kind: u8, rest: &[u8]) -> Self {
        self.extensions.push((kind, rest.to_vec()));
        self
    }

    /// Sets a byte of the payload.
    pub(crate) fn poke(mut self, at: usize, byte: u8) -> Self {
        self.payload[at] = byte;
        self
    }

    /// Cut off after so many bytes of the frame.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.bytes = bytes;
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let (kind, network) = match self.destination {
            IpAddr::V4(to) => (0x0800, self.v4(to.octets())),
            IpAddr::V6(to) => (0x86dd, self.v6(to.octets())),
        };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend(7_u16.to_be_bytes());
        }
        frame.extend(u16::to_be_bytes(kind));
        frame.extend(network);
        frame.truncate(self.bytes);
        frame
    }

    fn v4(&self, to: [u8; 4]) -> Vec<u8> {
        let words = self.header_words.unwrap_or_else(|| 5 + self.options.len() as u8 / 4);
        let total = u16::try_from(20 + self.options.len() + self.payload.len()).unwrap();
        let mut header = vec![self.version << 4 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 1]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, self.protocol, 0, 0, 198, 51, 100, 250]);
        header.extend(to);
        header.extend(&self.options);
        header.extend(&self.payload);
        header
    }

    fn v6(&self, to: [u8; 16]) -> Vec<u8> {
        let mut next = self.protocol;
        let mut rest = self.payload.clone();
        for (kind, bytes) in self.extensions.iter().rev() {
            rest = [&[next][..], bytes, &rest].concat();
            next = *kind;
        }
        let mut header = vec![self.version << 4, 0, 0, 0];
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend([next, 64]);
        header.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfa]);
        header.extend(to);
        header.extend(rest);
        header
    }
}
