//! Large downloads and uploads, slow enough to outlive a generation.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::poll_fn;
use http::Request;

use super::client::Client;
use super::http2::{Connections, Fate};
use super::link::Dialer;
use super::pattern::{self, PIECE_MAX};
use super::stage::WEB;
use super::{Http, Loss, Over, Size};
use crate::wait::PATIENCE;

/// How far a transfer is, and how long it was silent.
struct Progress<'a> {
    client: &'a Client,
    size: Size,
    start: Instant,
    last: Instant,
    done: u64,
}

/// One after the other.
pub(super) async fn downloads(client: Client, http: Http) {
    let dialer = Dialer::http1(&client, Over::Tls, WEB);
    while !client.is_stopping() {
        let begun = client.begin();
        let one = match http {
            Http::One => download1(&client, &dialer).await,
            Http::Two => {
                let connections = Connections::new(&client, WEB);
                connections.retried(async || download2(&client, &connections).await).await
            }
        };
        match one {
            Ok(()) => client.ok_streamed(begun),
            Err(loss) => client.lost(begun, loss).await,
        }
    }
}

/// One after the other.
pub(super) async fn uploads(client: Client, http: Http) {
    let dialer = Dialer::http1(&client, Over::Tls, WEB);
    while !client.is_stopping() {
        let begun = client.begin();
        let one = match http {
            Http::One => upload1(&client, &dialer).await,
            Http::Two => {
                let connections = Connections::new(&client, WEB);
                connections.retried(async || upload2(&client, &connections).await).await
            }
        };
        match one {
            Ok(()) => client.ok_streamed(begun),
            Err(loss) => client.lost(begun, loss).await,
        }
    }
}

async fn download1(client: &Client, dialer: &Dialer) -> Result<(), Loss> {
    let mut link = dialer.connect(client).await?;
    let bytes = client.size.bytes;
    link.send(format!("GET /download/{bytes} HTTP/1.1\r\nhost: {WEB}\r\n\r\n")).await?;
    let head = in_time(link.head()).await?;
    if head.status != 200 || head.length()? as u64 != bytes {
        return Err(head.unexpected());
    }
    let mut progress = Progress::new(client);
    loop {
        let came = link.buffer.split();
        progress.check(&came).await?;
        if progress.done == bytes {
            return Ok(());
        }
        let more = in_time(async { link.more().await.map_err(|error| Loss::of(&error)) });
        if more.await.map_err(|loss| progress.at(loss))? == 0 {
            return Err(progress.at(Loss::Reset("the end".to_owned())));
        }
    }
}

async fn upload1(client: &Client, dialer: &Dialer) -> Result<(), Loss> {
    let mut link = dialer.connect(client).await?;
    let bytes = client.size.bytes;
    let head = format!("POST /upload HTTP/1.1\r\nhost: {WEB}\r\ncontent-length: {bytes}\r\n\r\n");
    link.send(head).await?;
    let mut progress = Progress::new(client);
    while progress.done < bytes {
        let piece = progress.next();
        in_time(link.send(&piece)).await.map_err(|loss| progress.at(loss))?;
        progress.add(piece.len()).await;
    }
    let (head, body) = in_time(link.answer()).await.map_err(|loss| progress.at(loss))?;
    if head.status != 200 {
        return Err(head.unexpected());
    }
    said(&body, bytes)
}

async fn download2(client: &Client, connections: &Connections<'_>) -> Result<(), Fate> {
    let bytes = client.size.bytes;
    let request = Request::get(format!("https://{WEB}/download/{bytes}"));
    let request = request.body(()).expect("a sound request");
    let (response, _) = connections.start(request, true).await?;
    let response = response.await?;
    if response.status() != 200 {
        return Err(Fate::Lost(Loss::Failed(format!("status {}", response.status()))));
    }
    let mut down = response.into_body();
    let mut progress = Progress::new(client);
    while let Some(data) = tokio::time::timeout(PATIENCE, down.data()).await.unwrap_or_default() {
        let data = data.map_err(|error| progress.fate(error))?;
        progress.check(&data).await.map_err(Fate::Lost)?;
        down.flow_control().release_capacity(data.len())?;
    }
    if progress.done == bytes {
        return Ok(());
    }
    Err(Fate::Lost(progress.at(Loss::Reset("the end".to_owned()))))
}

async fn upload2(client: &Client, connections: &Connections<'_>) -> Result<(), Fate> {
    let bytes = client.size.bytes;
    let request = Request::post(format!("https://{WEB}/upload")).header("content-length", bytes);
    let request = request.body(()).expect("a sound request");
    let (response, mut up) = connections.start(request, false).await?;
    let mut progress = Progress::new(client);
    while progress.done < bytes {
        let mut piece = progress.next();
        let length = piece.len();
        while !piece.is_empty() {
            up.reserve_capacity(piece.len());
            let granted = in_time(async { Ok(poll_fn(|cx| up.poll_capacity(cx)).await) });
            let granted = granted.await.map_err(|loss| Fate::Lost(progress.at(loss)))?;
            let sent = granted.and_then(Result::ok).map(|granted| {
                let some = piece.split_to(granted.min(piece.len()));
                // With the last byte, because an answer may come as soon as the length is there.
                let end = piece.is_empty() && progress.done + length as u64 == bytes;
                up.send_data(some, end)
            });
            if !matches!(sent, Some(Ok(()))) {
                // The stream takes nothing more; its answer, or its end, says why.
                let answered = response.await.map(|response| response.status());
                let status = answered.map_err(|error| progress.fate(error))?;
                return Err(Fate::Lost(progress.at(Loss::Failed(format!("status {status}")))));
            }
        }
        progress.add(length).await;
    }
    let response = response.await.map_err(|error| progress.fate(error))?;
    let status = response.status();
    let mut down = response.into_body();
    let mut body = Vec::new();
    while let Some(data) = down.data().await {
        body.extend_from_slice(&data.map_err(|error| progress.fate(error))?);
    }
    if status != 200 {
        return Err(Fate::Lost(Loss::Failed(format!("status {status}"))));
    }
    said(&body, bytes).map_err(Fate::Lost)
}

/// The instance says how many bytes were right.
fn said(body: &[u8], bytes: u64) -> Result<(), Loss> {
    let said = String::from_utf8_lossy(body);
    if said == bytes.to_string() {
        return Ok(());
    }
    Err(Loss::Failed(format!("the instance says {said:?} of {bytes} bytes")))
}

/// No step of a transfer is silent for longer.
async fn in_time<T>(step: impl Future<Output = Result<T, Loss>>) -> Result<T, Loss> {
    let failed = |_| Err(Loss::Failed(format!("silent for {} s", PATIENCE.as_secs())));
    tokio::time::timeout(PATIENCE, step).await.unwrap_or_else(failed)
}

// === impl Progress ===

impl<'a> Progress<'a> {
    fn new(client: &'a Client) -> Self {
        let now = Instant::now();
        Self { client, size: client.size, start: now, last: now, done: 0 }
    }

    /// What is to be sent next.
    fn next(&self) -> Bytes {
        let left = usize::try_from(self.size.bytes - self.done).unwrap_or(PIECE_MAX);
        pattern::piece(self.done, left.min(PIECE_MAX))
    }

    /// Takes what came, if it is what should have come.
    async fn check(&mut self, came: &[u8]) -> Result<(), Loss> {
        if !pattern::is_at(self.done, came) {
            return Err(self.at(Loss::Failed("other bytes than were sent".to_owned())));
        }
        self.add(came.len()).await;
        Ok(())
    }

    /// Waits until it is time for more.
    async fn add(&mut self, count: usize) {
        self.client.silence(self.last.elapsed());
        self.done += count as u64;
        let share = self.done as f64 / self.size.bytes as f64;
        let due = self.size.within.mul_f64(share);
        let early = due.saturating_sub(self.start.elapsed());
        // A timer is not finer, and the next piece makes up for it.
        if early > Duration::from_millis(2) {
            tokio::time::sleep(early).await;
        }
        self.last = Instant::now();
    }

    /// A loss, with how far it was.
    fn at(&self, loss: Loss) -> Loss {
        loss.during(&format!("after {} of {} bytes", self.done, self.size.bytes))
    }

    fn fate(&self, error: h2::Error) -> Fate {
        match error.into() {
            Fate::Lost(loss) => Fate::Lost(self.at(loss)),
            Fate::Unseen => Fate::Unseen,
        }
    }
}
