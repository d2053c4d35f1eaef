//! Requests that fail, one of each class in turn. The unit is a request.

use anyhow::{Result, ensure};

use super::{Target, Worker, host, timed};
use crate::client::Stream;
use crate::client::http1::{Http1, Response};
use crate::histogram::Histogram;

pub(crate) struct Errors {
    target: Target,
    /// To an app whose instance answers as it is asked to, oddly or not.
    good: Option<Http1>,
}

/// The path, or the request, and the codes that may come of it.
struct Class {
    request: fn(host: &str) -> String,
    codes: &'static [&'static str],
}

/// After three failures in a row an instance rests, and then there is none.
const CLASSES: &[Class] = &[
    Class { request: |_| get("nobody.test", "/", ""), codes: &["PE01"] },
    Class {
        request: |host| get(host, "/", "content-length: 1\r\ncontent-length: 2\r\n"),
        codes: &["PP02"],
    },
    Class {
        request: |host| get(host, &format!("/{}", "p".repeat(17 << 10)), ""),
        codes: &["PP03"],
    },
    Class { request: |host| get(host, "/", &"x: y\r\n".repeat(101)), codes: &["PP04"] },
    Class { request: |host| get(host, "/", "").replace("GET", "TRACE"), codes: &["PP05"] },
    Class { request: |host| get(host, "/", "expect: the unexpected\r\n"), codes: &["PP08"] },
    Class { request: |_| get(&host("refusing"), "/", ""), codes: &["PC01", "PR01", "PR03"] },
    Class { request: |host| get(host, "/odd/closed", ""), codes: &["PU02", "PR01", "PR03"] },
    Class { request: |host| get(host, "/odd/reset", ""), codes: &["PC03", "PU02", "PR01", "PR03"] },
    Class {
        request: |host| get(host, "/odd/half-head", ""),
        codes: &["PU02", "PU07", "PR01", "PR03"],
    },
    Class { request: |host| get(host, "/odd/garbage", ""), codes: &["PU07", "PR01", "PR03"] },
    Class { request: |host| get(host, "/odd/two-lengths", ""), codes: &["PU07", "PR01", "PR03"] },
    // The head is through when it fails: the client sees a body that ends too early.
    Class { request: |host| get(host, "/odd/half-body", ""), codes: &["cut", "PR01", "PR03"] },
];

fn get(host: &str, path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{fields}\r\n")
}

impl Errors {
    pub(crate) fn new(target: Target) -> Self {
        Self { target, good: None }
    }

    /// Three requests that succeed, so that the instance is not taken out for its oddities.
    fn appease(&mut self) -> Result<()> {
        let mut client = match self.good.take() {
            Some(client) => client,
            None => Http1::new(Stream::clear(self.target.http)?),
        };
        for _ in 0..3 {
            let answer = client.get(&host("odd"), "/")?;
            // Out for a moment all the same: other workers had three failures between them.
            ensure!(matches!(answer.status, 200 | 503), "{} instead of 200", answer.status);
        }
        self.good = Some(client);
        Ok(())
    }
}

impl Worker for Errors {
    fn once(&mut self, number: u64, histogram: &mut Histogram) -> Result<()> {
        self.appease()?;
        let class = &CLASSES[number as usize % CLASSES.len()];
        let stream = self.target.stream(number, &host("odd"))?;
        // Another app's name is refused as misdirected when it comes in TLS.
        let clear = matches!(stream, Stream::Clear(_));
        let request = (class.request)(&host("odd"));
        let foreign = !request.contains(&format!("host: {}\r\n", host("odd")));
        let answer = timed(histogram, || {
            let mut client = Http1::new(stream);
            Ok(client.exchange(request.as_bytes()))
        })?;
        let code = answer.as_ref().map_or("cut", Response::code);
        if foreign && !clear {
            ensure!(matches!(code, "PE01" | "PE02"), "{code:?} instead of PE02");
            return Ok(());
        }
        ensure!(class.codes.contains(&code), "{code:?} instead of one of {:?}", class.codes);
        Ok(())
    }

    fn rest(&mut self) {
        self.good = None;
    }
}
