//! The instance's side of a WebSocket: messages come back, and so does the farewell.

use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::Result;

const CLOSE: u8 = 0x88;

/// Of messages up to 125 bytes.
pub(super) fn echo(stream: &mut BufReader<TcpStream>) -> Result<()> {
    loop {
        let mut head = [0; 6]; // with the mask
        stream.read_exact(&mut head)?;
        let [kind, length, mask @ ..] = head;
        let mut message = vec![0; usize::from(length & 0x7f)];
        stream.read_exact(&mut message)?;
        message.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        let mut answer = vec![kind, u8::try_from(message.len())?];
        answer.extend(message);
        stream.get_mut().write_all(&answer)?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}
