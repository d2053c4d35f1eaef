//! The `Date` of a response: what hyper does for HTTP/1 and nobody does for HTTP/2.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{DATE, HeaderMap, HeaderValue};

thread_local! {
    /// The value of one second, which all responses of that second share.
    static CACHED: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// Adds the date where the instance sent none.
pub fn complete(headers: &mut HeaderMap) {
    //= https://www.rfc-editor.org/rfc/rfc9110#section-6.6.1
    //# A recipient with a clock that receives a response message without a Date header field MUST
    //# record the time it was received and append a corresponding Date header field to the
    //# message's header section if it is cached or forwarded downstream.
    if !headers.contains_key(DATE) {
        headers.insert(DATE, now());
    }
}

/// This second.
pub fn now() -> HeaderValue {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let second = since_epoch.as_secs();
    CACHED.with_borrow_mut(|cached| match cached {
        Some((cached, value)) if *cached == second => value.clone(),
        _ => {
            let value = format(second);
            *cached = Some((second, value.clone()));
            value
        }
    })
}

fn format(second: u64) -> HeaderValue {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    HeaderValue::from_maybe_shared(Bytes::from(httpdate::fmt_http_date(time)))
        .expect("a date is visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_holds() {
        assert_eq!(format(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn an_instances_own_date_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(DATE, format(784_111_777));
        complete(&mut headers);
        assert_eq!(headers[DATE], format(784_111_777));
        headers.clear();
        complete(&mut headers);
        assert!(headers[DATE].to_str().unwrap().ends_with(" GMT"));
    }
}
