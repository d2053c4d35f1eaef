//! What a process is told by signals: to end, or to be replaced.

use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::succession::Succession;

/// Cancels `end` at the first SIGTERM or Ctrl-C and `hurry` at the second, and wishes for an upgrade at
/// SIGUSR2; for ever.
pub(super) async fn follow(
    end: CancellationToken,
    hurry: CancellationToken,
    upgrade: mpsc::Sender<()>,
) {
    let ending = async {
        let mut terminate = listen_to(SignalKind::terminate());
        for token in [end, hurry] {
            wait_for_end(&mut terminate).await;
            token.cancel();
        }
    };
    let upgrading = async {
        let mut wishes = listen_to(SignalKind::user_defined2());
        loop {
            wishes.next().await;
            upgrade.try_send(()).ok(); // one that waits is enough
        }
    };
    tokio::join!(ending, upgrading);
}

/// Has the node replaced whenever somebody wishes it, until `stop`.
pub(super) async fn upgrade(
    succession: Arc<Succession>,
    mut wishes: mpsc::Receiver<()>,
    stop: CancellationToken,
) {
    while let Some(Some(())) = stop.run_until_cancelled(wishes.recv()).await {
        match succession.ask(None) {
            // What becomes of it is in the log.
            Ok(mut lines) => while lines.recv().await.is_some() {},
            Err(reason) => tracing::error!(reason, "SIGUSR2 asks for an upgrade in vain"),
        }
    }
    stop.cancelled().await;
}

async fn wait_for_end(terminate: &mut Heard) {
    let interrupted = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = terminate.next() => {}
        () = interrupted => {}
    }
}

/// A signal; without a handler its default, to end at once, is what is left.
struct Heard(Option<Signal>);

fn listen_to(kind: SignalKind) -> Heard {
    Heard(signal(kind).ok())
}

impl Heard {
    async fn next(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}
