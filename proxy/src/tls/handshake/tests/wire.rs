//! ClientHellos that no TLS library would send.

/// A TLS 1.2 (or older) ClientHello for `a.example` with one suite and `padding` bytes of padding.
pub(super) fn hello(version: u16, suite: u16, padding: usize) -> Vec<u8> {
    fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(body.len() as u16).to_be_bytes(), body].concat()
    }
    let extensions = [
        extension(0, b"\x00\x0c\x00\x00\x09a.example"), // server_name
        extension(10, &[0, 2, 0, 23]),                  // supported_groups: secp256r1
        extension(11, &[1, 0]),                         // ec_point_formats: uncompressed
        extension(13, &[0, 2, 4, 3]),                   // signature_algorithms: ECDSA P-256
        extension(21, &vec![0; padding]),               // padding
    ]
    .concat();
    let body = [
        &version.to_be_bytes()[..],
        &[7; 32], // random
        &[0],     // session id
        &[0, 2],
        &suite.to_be_bytes(),
        &[1, 0], // compression: none
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let length = (body.len() as u32).to_be_bytes();
    let handshake = [&[1], &length[1..], &body].concat();
    in_records_of(&handshake, 16 * 1024)
}

/// The handshake message of `hello`, cut into records of `size` bytes.
pub(super) fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
    let mut message = Vec::new();
    let mut rest = hello;
    while let [_, _, _, high, low, body @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        message.extend_from_slice(&body[..length]);
        rest = &body[length..];
    }
    in_records_of(&message, size)
}

fn in_records_of(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1], &(part.len() as u16).to_be_bytes()[..], part].concat();
    message.chunks(size).flat_map(record).collect()
}
