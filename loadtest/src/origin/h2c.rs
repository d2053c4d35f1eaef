//! An HTTP/2 instance with prior knowledge: the messages of a stream come back as they come, and its
//! end is answered with trailers, as gRPC wants them.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};

use crate::client::h2::{
    ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PADDED, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_SIZE, WINDOW_UPDATE, fields, frame,
};

struct Connection {
    stream: BufReader<TcpStream>,
    /// What the other side will take: of the connection, of a new stream, and of each stream.
    window: i64,
    initial: i64,
    windows: HashMap<u32, i64>,
    /// What waits for a window: stream, payload, whether it is the last.
    waiting: VecDeque<(u32, Vec<u8>, bool)>,
}

pub(super) fn serve(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let mut preface = vec![0; PREFACE.len()];
    stream.read_exact(&mut preface)?;
    ensure!(preface == PREFACE, "no preface");
    let windows = HashMap::new();
    let waiting = VecDeque::new();
    let mut connection = Connection { stream, window: 65_535, initial: 65_535, windows, waiting };
    connection.write(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        connection.step()?;
    }
}

impl Connection {
    fn step(&mut self) -> Result<()> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload)?;
        let id = u32::from_be_bytes(id) & 0x7fff_ffff;
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    let value =
                        u32::from_be_bytes(*setting[2..].first_chunk().context("a setting")?);
                    if u16::from_be_bytes([setting[0], setting[1]]) == WINDOW_SIZE {
                        let more = i64::from(value) - self.initial;
                        self.initial += more;
                        self.windows.values_mut().for_each(|window| *window += more);
                    }
                }
                self.write(&frame(SETTINGS, ACK, 0, &[]))?;
            }
            PING if flags & ACK == 0 => self.write(&frame(PING, ACK, 0, &payload))?,
            WINDOW_UPDATE => {
                let more = i64::from(u32::from_be_bytes(*payload.first_chunk().context("more")?));
                match id {
                    0 => self.window += more,
                    id => *self.windows.entry(id).or_insert(self.initial) += more,
                }
            }
            HEADERS => {
                self.windows.entry(id).or_insert(self.initial);
                let block = [vec![0x88], fields(&[("content-type", "application/grpc")])].concat();
                self.write(&frame(HEADERS, END_HEADERS, id, &block))?;
                if flags & END_STREAM != 0 {
                    self.waiting.push_back((id, Vec::new(), true));
                }
            }
            DATA => {
                let size = u32::try_from(payload.len())?.to_be_bytes();
                if flags & PADDED != 0 {
                    let padding = usize::from(*payload.first().context("no padding")?);
                    payload = payload.get(1..payload.len() - padding).context("padding")?.to_vec();
                }
                if u32::from_be_bytes(size) > 0 {
                    let both =
                        [frame(WINDOW_UPDATE, 0, 0, &size), frame(WINDOW_UPDATE, 0, id, &size)];
                    self.write(&both.concat())?;
                }
                self.waiting.push_back((id, payload, flags & END_STREAM != 0));
            }
            RST_STREAM => {
                self.windows.remove(&id);
                self.waiting.retain(|(stream, ..)| *stream != id);
            }
            _ => {}
        }
        self.flush()
    }

    /// In order: the messages of all streams are small.
    fn flush(&mut self) -> Result<()> {
        while let Some((id, payload, last)) = self.waiting.front() {
            let size = payload.len() as i64;
            let Some(window) = self.windows.get_mut(id) else {
                self.waiting.pop_front();
                continue;
            };
            if size > self.window || size > *window {
                return Ok(());
            }
            self.window -= size;
            *window -= size;
            let mut bytes = Vec::new();
            if size > 0 {
                bytes = frame(DATA, 0, *id, payload);
            }
            if *last {
                let trailers = fields(&[("grpc-status", "0")]);
                bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, *id, &trailers));
                self.windows.remove(id);
            }
            self.waiting.pop_front();
            self.stream.get_mut().write_all(&bytes)?;
        }
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }
}
