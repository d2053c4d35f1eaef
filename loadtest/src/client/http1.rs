//! HTTP/1.1, as strictly as its framing can be read.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use anyhow::{Context as _, Result, bail, ensure};

use super::Stream;

/// A connection that takes turns.
pub(crate) struct Http1 {
    stream: BufReader<Stream>,
}

/// A complete answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// No head and no line of a chunked body is longer.
const LINE_BYTES_MAX: u64 = 64 * 1024;

impl Http1 {
    pub(crate) fn new(stream: Stream) -> Self {
        Self { stream: BufReader::with_capacity(16 * 1024, stream) }
    }

    pub(crate) fn into_stream(self) -> Stream {
        self.stream.into_inner()
    }

    pub(crate) fn get(&mut self, host: &str, path: &str) -> Result<Response> {
        self.exchange(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes())
    }

    /// Sends the bytes of a request and reads its answer.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> Result<Response> {
        self.stream.get_mut().write_all(request)?;
        self.response()
    }

    /// The next final answer of a request that is not a HEAD.
    pub(crate) fn response(&mut self) -> Result<Response> {
        loop {
            let mut response = self.head()?;
            if response.status >= 200 {
                response.body = self.body(&response)?;
                return Ok(response);
            }
            if response.status == 101 {
                return Ok(response);
            }
        }
    }

    fn head(&mut self) -> Result<Response> {
        let line = self.line()?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.with_context(|| format!("no status line: {line:?}"))?.parse()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Response { status, headers, body: Vec::new() });
            }
            let (name, value) = line.split_once(':').with_context(|| format!("{line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn body(&mut self, response: &Response) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if matches!(response.status, 204 | 304) {
            return Ok(body);
        }
        if response.header("transfer-encoding").is_some_and(|value| value == "chunked") {
            loop {
                let line = self.line()?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16).with_context(|| format!("{line:?}"))?;
                self.take(size, &mut body)?;
                if size == 0 {
                    while !self.line()?.is_empty() {} // trailers
                    return Ok(body);
                }
                ensure!(self.line()?.is_empty(), "a chunk without an end");
            }
        }
        if let Some(length) = response.header("content-length") {
            self.take(length.parse()?, &mut body)?;
            return Ok(body);
        }
        self.stream.read_to_end(&mut body)?;
        Ok(body)
    }

    fn take(&mut self, length: u64, body: &mut Vec<u8>) -> Result<()> {
        let taken = (&mut self.stream).take(length).read_to_end(body)?;
        ensure!(taken as u64 == length, "closed in the middle of an answer's body");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut self.stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            bail!("closed instead of an answer");
        }
        let line = line.strip_suffix(b"\r\n").context("a line without its end")?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(key, value)| (key == name).then_some(value.as_str()))
    }

    /// Whether the connection ends with it.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The node's own code, when it is the node's own answer.
    pub(crate) fn code(&self) -> &str {
        self.header("ferrule-error").unwrap_or_default()
    }
}
