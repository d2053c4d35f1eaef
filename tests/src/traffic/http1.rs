//! HTTP/1.1: a connection per request, and connections that are kept.

use std::time::Duration;

use super::client::{Client, bounded};
use super::link::{Dialer, Link};
use super::stage::WEB;
use super::{Loss, Over};

/// One request per connection, one after the other.
pub(super) async fn fresh(client: Client, over: Over, every: Duration) {
    let dialer = Dialer::http1(&client, over, WEB);
    while !client.is_stopping() {
        let begun = client.begin();
        let one = async {
            let mut link = dialer.connect(&client).await?;
            bounded(exchange(&mut link, &Ask::Get)).await
        };
        match one.await {
            Ok(_) => client.ok(begun),
            Err(loss) => client.lost(begun, loss).await,
        }
        client.pause(every).await;
    }
}

/// GET and POST in turn on a connection that is kept as long as the server lets it.
pub(super) async fn kept(client: Client, over: Over, every: Duration) {
    let dialer = Dialer::http1(&client, over, WEB);
    let mut kept = None;
    let mut turn = client.index;
    while !client.is_stopping() {
        turn += 1;
        let ask =
            if turn.is_multiple_of(2) { Ask::Get } else { Ask::Post(Client::id(), Duration::ZERO) };
        let begun = client.begin();
        match asked(&client, &dialer, kept.take(), &ask).await {
            Ok(link) => {
                client.ok(begun);
                kept = link;
            }
            Err(loss) => client.lost(begun, loss).await,
        }
        kept = rest(&client, kept, every).await;
    }
}

/// POSTs that each take the instance `hold`, one right after the other.
pub(super) async fn crowd(client: Client, hold: Duration) {
    let dialer = Dialer::http1(&client, Over::Clear, WEB);
    let mut kept = None;
    while !client.is_stopping() {
        let begun = client.begin();
        match asked(&client, &dialer, kept.take(), &Ask::Post(Client::id(), hold)).await {
            Ok(link) => {
                client.ok(begun);
                kept = link;
            }
            Err(loss) => client.lost(begun, loss).await,
        }
    }
}

/// What is asked.
enum Ask {
    /// Without side effects.
    Get,
    /// With this id, which must reach an instance once and keeps it busy for so long.
    Post(u64, Duration),
}

/// Asks on the kept connection or on a new one, which is given back if it may be kept.
async fn asked(
    client: &Client,
    dialer: &Dialer,
    kept: Option<Link>,
    ask: &Ask,
) -> Result<Option<Link>, Loss> {
    if let Some(mut link) = kept {
        match bounded(exchange(&mut link, ask)).await {
            Ok(ends) => return Ok((!ends).then_some(link)),
            //= https://www.rfc-editor.org/rfc/rfc9112#section-9.3.1
            //# a client MAY automatically retry
            Err(Loss::Closed) if matches!(ask, Ask::Get) => client.count().crossed += 1,
            Err(loss) => return Err(loss),
        }
    }
    let mut link = dialer.connect(client).await?;
    let ends = bounded(exchange(&mut link, ask)).await?;
    Ok((!ends).then_some(link))
}

/// Asks and reads the answer; whether it said that the connection ends.
async fn exchange(link: &mut Link, ask: &Ask) -> Result<bool, Loss> {
    let (request, wanted) = match ask {
        Ask::Get => (format!("GET /hello HTTP/1.1\r\nhost: {WEB}\r\n\r\n"), "hello".to_owned()),
        Ask::Post(id, hold) => {
            let hold = hold.as_millis();
            let head = format!("POST /once/{hold} HTTP/1.1\r\nhost: {WEB}\r\nx-id: {id}\r\n");
            (format!("{head}content-length: 4\r\n\r\nonce"), id.to_string())
        }
    };
    link.send(request).await?;
    let (head, body) = link.answer().await?;
    if head.status != 200 {
        return Err(head.unexpected());
    }
    if body != wanted.as_bytes() {
        return Err(Loss::Failed(format!("an answer to something else: {} bytes", body.len())));
    }
    Ok(head.says_close())
}

/// Lets time pass beside a kept connection, and lets go of it if it ends meanwhile.
async fn rest(client: &Client, kept: Option<Link>, every: Duration) -> Option<Link> {
    let Some(mut link) = kept else {
        client.pause(every).await;
        return None;
    };
    let read = tokio::select! {
        read = link.more() => read,
        () = client.pause(every) => return Some(link),
    };
    match read {
        Ok(0) => client.count().unannounced += 1,
        Ok(_) => client.count().lose(&Loss::Failed("bytes that nobody asked for".to_owned())),
        Err(error) => client.count().lose(&Loss::of(&error).during("resting")),
    }
    client.pause(every).await;
    None
}
