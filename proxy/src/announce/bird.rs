//! BIRD over its control socket: a line protocol with a code in front of every line.
//!
//! ```text
//! < 0001 BIRD 2.0.12 ready.
//! > show protocols "anycast4"
//! < 2002-Name       Proto      Table      State  Since         Info
//! < 1002-anycast4   Static     master4    up     15:11:09.881
//! < 0000
//! ```
//!
//! A minus follows the code of a line that others follow; a line that begins with a space has the
//! code of the one before. Codes from 8000 on are refusals. (BIRD 2.0.12, `doc/reply_codes`.)

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

/// A conversation. Whoever has it sets a deadline around what it asks.
pub(super) struct Bird {
    stream: BufReader<UnixStream>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    lines: Vec<(u16, String)>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BirdError {
    #[error("BIRD does not answer at {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("BIRD broke off")]
    Broken(#[source] io::Error),
    #[error("BIRD's answer is not one: {0:?}")]
    Garbled(String),
    #[error("BIRD answers {code:04} to \"{command}\": {text}")]
    Refused { command: String, code: u16, text: String },
    #[error("BIRD's answer to \"{command}\" does not say what was asked")]
    Unclear { command: String },
    #[error("BIRD does not answer within {0} s")]
    Silent(u64),
}

/// What some protocol and a constant of the configuration are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Up,
    Down,
}

/// Bytes of one answer; that of `show protocols all` is a tenth of it.
const REPLY_BYTES_MAX: u64 = 64 * 1024;

const WELCOME: u16 = 1;
const DISABLED: [u16; 2] = [8, 9];
const ENABLED: [u16; 2] = [10, 11];
/// Done, or on its way.
const CONFIGURED: [u16; 2] = [3, 4];
const RESTRICTED: u16 = 16;
const VALUE: u16 = 23;
const PROTOCOLS: u16 = 1002;
const REFUSALS: u16 = 8000;

// === impl Bird ===

impl Bird {
    pub(super) async fn connect(path: &Path) -> Result<Self, BirdError> {
        let connect = |source| BirdError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).await.map_err(connect)?;
        let mut bird = Self { stream: BufReader::new(stream) };
        let welcome = bird.reply().await?;
        match welcome.code() {
            WELCOME => Ok(bird),
            _ => Err(welcome.refused("(the connection)")),
        }
    }

    /// Whether a protocol is up. A static protocol that is down was disabled.
    pub(super) async fn protocol(&mut self, name: &str) -> Result<Protocol, BirdError> {
        let command = format!("show protocols \"{name}\"");
        let reply = self.ask(&command).await?;
        for line in reply.with_code(PROTOCOLS) {
            // Name, Proto, Table, State, Since, Info
            let fields: Vec<&str> = line.split_whitespace().collect();
            match (fields.first(), fields.get(3)) {
                (Some(found), Some(&state)) if *found == name => {
                    return Ok(if state == "up" { Protocol::Up } else { Protocol::Down });
                }
                _ => {}
            }
        }
        Err(BirdError::Unclear { command })
    }

    pub(super) async fn enable(&mut self, protocol: &str) -> Result<(), BirdError> {
        self.expect(&format!("enable {protocol}"), ENABLED).await
    }

    pub(super) async fn disable(&mut self, protocol: &str) -> Result<(), BirdError> {
        self.expect(&format!("disable {protocol}"), DISABLED).await
    }

    /// Reads the configuration again. A mistake in it changes nothing but the answer.
    pub(super) async fn configure(&mut self) -> Result<(), BirdError> {
        self.expect("configure", CONFIGURED).await
    }

    /// What a constant of the configuration in force is, as BIRD prints it.
    pub(super) async fn constant(&mut self, name: &str) -> Result<String, BirdError> {
        let command = format!("eval {name}");
        let reply = self.ask(&command).await?;
        let value = reply.with_code(VALUE).next().map(str::to_owned);
        value.ok_or(BirdError::Unclear { command })
    }

    async fn expect(&mut self, command: &str, codes: [u16; 2]) -> Result<(), BirdError> {
        let reply = self.ask(command).await?;
        let said = |wanted: u16| reply.lines.iter().any(|(code, _)| *code == wanted);
        if codes.into_iter().any(said) { Ok(()) } else { Err(reply.refused(command)) }
    }

    async fn ask(&mut self, command: &str) -> Result<Reply, BirdError> {
        let line = format!("{command}\n");
        self.stream.get_mut().write_all(line.as_bytes()).await.map_err(BirdError::Broken)?;
        let reply = self.reply().await?;
        match reply.code() {
            code if code >= REFUSALS || code == RESTRICTED => Err(reply.refused(command)),
            _ => Ok(reply),
        }
    }

    async fn reply(&mut self) -> Result<Reply, BirdError> {
        let mut lines: Vec<(u16, String)> = Vec::new();
        let mut room = REPLY_BYTES_MAX;
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.stream).take(room).read_until(b'\n', &mut bytes).await;
            room -= read.map_err(BirdError::Broken)? as u64;
            if bytes.pop() != Some(b'\n') {
                let why = if room == 0 { "it is too long" } else { "it ended within a line" };
                return Err(BirdError::Broken(io::Error::other(why)));
            }
            let line = String::from_utf8_lossy(&bytes).into_owned();
            match (Line::parse(&line), lines.last()) {
                (Some(Line::Coded { code, text, is_last }), _) => {
                    lines.push((code, text.to_owned()));
                    if is_last {
                        return Ok(Reply { lines });
                    }
                }
                (Some(Line::Continued(text)), Some(&(code, _))) => {
                    lines.push((code, text.to_owned()));
                }
                // What BIRD logs while somebody listens.
                (Some(Line::Aside), _) => {}
                _ => return Err(BirdError::Garbled(line.chars().take(80).collect())),
            }
        }
    }
}

enum Line<'a> {
    Coded { code: u16, text: &'a str, is_last: bool },
    Continued(&'a str),
    Aside,
}

// === impl Line ===

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if let Some(text) = line.strip_prefix(' ') {
            return Some(Line::Continued(text));
        }
        if line.starts_with('+') {
            return Some(Line::Aside);
        }
        let (code, rest) = line.split_at_checked(4)?;
        let code = code.bytes().all(|byte| byte.is_ascii_digit()).then(|| code.parse().ok())??;
        let is_last = match rest.bytes().next() {
            Some(b' ') | None => true,
            Some(b'-') => false,
            Some(_) => return None,
        };
        Some(Line::Coded { code, text: rest.get(1..).unwrap_or_default(), is_last })
    }
}

// === impl Reply ===

impl Reply {
    /// That of the last line, which is that of the answer.
    fn code(&self) -> u16 {
        self.lines.last().map_or(0, |(code, _)| *code)
    }

    fn with_code(&self, wanted: u16) -> impl Iterator<Item = &str> {
        self.lines.iter().filter(move |(code, _)| *code == wanted).map(|(_, text)| text.as_str())
    }

    fn refused(&self, command: &str) -> BirdError {
        let text = self.lines.last().map_or("", |(_, text)| text).chars().take(200).collect();
        BirdError::Refused { command: command.to_owned(), code: self.code(), text }
    }
}

#[cfg(test)]
mod tests;
