//! The only place where the layers of a request are composed.

use std::rc::Rc;

use tower::ServiceBuilder;

use crate::admission::RequestAdmissionLayer;
use crate::answer::AnswerLayer;
use crate::dispatch::Dispatch;
use crate::downstream::Downstream;
use crate::http::RequestService;
use crate::identify::layer::IdentifyLayer;
use crate::worker::Worker;

/// Builds the service of one connection; it lives as long as the connection does.
pub fn service(worker: &Rc<Worker>, downstream: Rc<Downstream>) -> impl RequestService {
    let layers = ServiceBuilder::new();
    // What the memory tests must find; never in `ferrule`.
    #[cfg(feature = "leaky-layer")]
    let layers = layers.layer(crate::leaky::LeakLayer::new());
    // What the watch over the heap must find; never in `ferrule`.
    #[cfg(feature = "seeded-leaks")]
    let layers = layers.layer(crate::seeded::SeededLayer::new(&worker.connections));
    layers
        // Every request gets an id and an answer, and this is the only place where a failure
        // becomes a response.
        .layer(AnswerLayer::new(worker.clone(), downstream))
        // Refuse what is malformed and shed what is too much before any work is spent on routing.
        .layer(RequestAdmissionLayer::new(worker.clone()))
        // From here on the app is known: limits, metrics and header policy are its own.
        .layer(IdentifyLayer::new(worker.clone()))
        // Permit, instance, attempt, retry.
        .service(Dispatch::new(worker.clone()))
}
