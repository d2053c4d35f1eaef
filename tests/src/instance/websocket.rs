//! A WebSocket echo: answers every frame with the same opcode and payload, and a close with a close.

use std::io;

use super::{Conversation, Scripted};
use crate::client::accept_key;
use crate::client::websocket::{frame, read_frame};

/// Starts the echo.
pub fn websocket_echo() -> Scripted {
    Scripted::start(|connection| {
        let request = connection.request()?;
        let key = request.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("sec-websocket-key").then_some(value.trim())
        });
        let Some(key) = key else {
            return connection.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
        };
        connection.send(format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            accept_key(key)
        ))?;
        echo(connection)
    })
}

fn echo(connection: &mut Conversation) -> io::Result<()> {
    const CLOSE: u8 = 8;
    loop {
        let (opcode, payload) = read_frame(|count| connection.exactly(count))?;
        connection.send(frame(opcode, &payload, None))?;
        if opcode == CLOSE {
            return Ok(());
        }
    }
}
