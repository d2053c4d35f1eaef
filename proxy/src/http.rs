//! HTTP towards the client: connections, the rules of heads, and what is added and removed.

use std::convert::Infallible;

use futures_util::future::LocalBoxFuture;
use http::{Request, Response};

use crate::body::Body;

pub mod screen;
pub mod h1;
pub(crate) mod frames;
pub mod h2;
pub mod upgrade;
pub mod websocket;
pub mod authority;
pub mod fields;
pub mod date;
pub mod forward;

/// A request as it came, before anything is known of it.
pub struct Arrival {
    pub request: Request<Body>,
    /// Set when it asks to become a tunnel; its body is empty then.
    pub upgrade: Option<upgrade::Request>,
}

/// What serves the requests of one connection. It never fails: failures have become responses.
pub trait RequestService:
    tower::Service<
        Arrival,
        Response = Response<Body>,
        Error = Infallible,
        Future = LocalBoxFuture<'static, Result<Response<Body>, Infallible>>,
    > + Clone
    + Unpin
    + 'static
{
}

impl<S> RequestService for S where
    S: tower::Service<
            Arrival,
            Response = Response<Body>,
            Error = Infallible,
            Future = LocalBoxFuture<'static, Result<Response<Body>, Infallible>>,
        > + Clone
        + Unpin
        + 'static
{
}
