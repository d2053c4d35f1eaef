//! HTTP/1.1: who answers, and the request as it arrived.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::About;

pub(super) async fn serve(stream: TcpStream, about: &About) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(respond(&request, about))
    });
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

fn respond<B>(request: &Request<B>, about: &About) -> Response<Full<Bytes>> {
    let mut text = format!("{}\n{} {}\n", about.line(), request.method(), request.uri());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    let mut response = Response::new(Full::new(text.into()));
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_instance_says_who_it_is_and_what_reached_it() {
        let request = Request::get("/a?b").header("via", "2 ferrule").body(()).expect("valid");
        let response = respond(&request, &About::example());
        let body = response.into_body().collect().await.expect("it is there").to_bytes();
        assert_eq!(body, "hello-ams in ams answers\n\nGET /a?b\nvia: 2 ferrule\n");
    }
}
