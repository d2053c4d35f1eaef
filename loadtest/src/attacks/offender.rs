//! One attacking connection, from its beginning until the node ends it or its time is up.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Deadlines, Scene};
use crate::client::h2::{Event, GOAWAY, H2};
use crate::client::{Stream, is_timeout};

/// One attack.
pub(crate) struct Attack {
    pub name: &'static str,
    pub about: &'static str,
    pub unit: &'static str,
    pub ends: Ends,
    /// Of these names and labels, one must rise.
    pub counters: &'static [&'static str],
    pub run: fn(&Scene, &mut Offender) -> Result<()>,
    pub in_short: bool,
}

/// How the node should answer it.
#[derive(Clone, Copy)]
pub(crate) enum Ends {
    /// By closing the connection, within this time of the deadlines.
    Closed(fn(&Deadlines) -> u64),
    /// By refusing the request; the connection may go on.
    Refused,
    /// With patience: it is allowed, and must only cost little.
    Endured,
}

/// What became of a connection.
pub(crate) struct Offender {
    pub sent: u64,
    /// Connections, one after the other.
    pub rounds: u64,
    pub closed_after: Option<Duration>,
    /// What the node said.
    pub said: Option<String>,
    /// The attack could not be made.
    pub failed: Option<String>,
    pub limit: Duration,
    began: Instant,
}

/// On top of a deadline: the node looks once a second, a busy machine later.
const GRACE: u64 = 6;

/// What an attack that is only endured lasts.
const ENDURED: Duration = Duration::from_secs(5);

/// Floods stop by themselves: a suite must not become an attack on the machine.
const SENT_MAX: u64 = 400_000;

impl Attack {
    pub(crate) fn limit(&self, deadlines: &Deadlines) -> Duration {
        match self.ends {
            Ends::Closed(within) => Duration::from_secs(within(deadlines) + GRACE),
            Ends::Refused => Duration::from_secs(GRACE),
            Ends::Endured => ENDURED,
        }
    }
}

impl Offender {
    pub(crate) fn attack(scene: &Scene, attack: &Attack, limit: Duration, again: Duration) -> Self {
        let began = Instant::now();
        let mut all = Self::once(scene, attack, limit);
        all.rounds = 1;
        // Whoever is turned away comes again, so that others have the time to notice.
        while began.elapsed() < again && all.failed.is_none() {
            let next = Self::once(scene, attack, limit);
            all.sent += next.sent;
            all.rounds += 1;
            all.closed_after =
                all.closed_after.zip(next.closed_after).map(|(one, other)| one.max(other));
            all.failed = next.failed;
        }
        all
    }

    fn once(scene: &Scene, attack: &Attack, limit: Duration) -> Self {
        let began = Instant::now();
        let mut offender =
            Self { sent: 0, rounds: 0, closed_after: None, said: None, failed: None, limit, began };
        if let Err(error) = (attack.run)(scene, &mut offender) {
            // Cut while writing or reading is what it should come to.
            let cut = error.downcast_ref::<io::Error>().is_some_and(|error| !is_timeout(error));
            if cut && offender.sent > 0 {
                offender.closed();
            } else if offender.closed_after.is_none() {
                offender.failed = Some(format!("{error:#}"));
            }
        }
        offender
    }

    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.began.elapsed())
    }

    pub(crate) fn has_time(&self) -> bool {
        !self.left().is_zero() && self.sent < SENT_MAX
    }

    pub(crate) fn closed(&mut self) {
        self.closed_after = self.closed_after.or_else(|| Some(self.began.elapsed()));
    }

    pub(crate) fn say(&mut self, what: impl Into<String>) {
        if self.said.is_none() {
            self.said = Some(what.into());
        }
    }

    /// Sends what `part` makes, as fast as it is taken, until the node has enough.
    pub(crate) fn flood(
        &mut self,
        client: &mut H2,
        each: u64,
        mut part: impl FnMut(u64) -> Vec<u8>,
    ) -> Result<()> {
        let mut round = 0;
        while self.has_time() {
            client.raw().set_patience(Duration::from_secs(1))?;
            match client.send(&part(round)) {
                Ok(()) => self.sent += each,
                // It has stopped reading, which is an answer too.
                Err(error) if is_timeout(&error) => break,
                Err(_) => {
                    self.listen(client)?;
                    self.closed();
                    return Ok(());
                }
            }
            round += 1;
            // Whatever it answers must not fill the pipe.
            while let Event::Frame(frame) = client.unanswered(Duration::from_millis(1))? {
                if frame.kind == GOAWAY {
                    self.say(format!("GOAWAY {}", frame.code().unwrap_or_default()));
                }
            }
        }
        self.listen(client)
    }

    /// Reads until the node closes, or time is up.
    pub(crate) fn listen(&mut self, client: &mut H2) -> Result<()> {
        loop {
            match client.event(self.left())? {
                Event::Frame(frame) if frame.kind == GOAWAY => {
                    self.say(format!("GOAWAY {}", frame.code().unwrap_or_default()));
                }
                Event::Frame(_) => {}
                Event::Silence => return Ok(()),
                Event::Closed => {
                    self.closed();
                    return Ok(());
                }
            }
        }
    }

    /// Sends `part` again and again with pauses, until the node closes or time is up.
    pub(crate) fn drip(&mut self, stream: &mut Stream, part: &[u8], pause: Duration) -> Result<()> {
        let mut chunk = [0; 4096];
        while self.has_time() {
            if let Err(error) = stream.write_all(part) {
                if !is_timeout(&error) {
                    self.closed();
                }
                return Ok(());
            }
            self.sent += 1;
            stream.set_patience(pause)?;
            match stream.read(&mut chunk) {
                Ok(0) => {
                    self.closed();
                    return Ok(());
                }
                Ok(count) => self.say(first_line(&chunk[..count])),
                Err(error) if is_timeout(&error) => {}
                Err(_) => {
                    self.closed();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Says nothing and waits to be closed; what is said meanwhile is read.
    pub(crate) fn wait(&mut self, stream: &mut Stream) -> Result<()> {
        let mut chunk = [0; 4096];
        self.sent = self.sent.max(1);
        while self.has_time() {
            stream.set_patience(self.left())?;
            match stream.read(&mut chunk) {
                Ok(0) => {
                    self.closed();
                    return Ok(());
                }
                Ok(count) => self.say(first_line(&chunk[..count])),
                Err(error) if is_timeout(&error) => return Ok(()),
                Err(_) => {
                    self.closed();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads nothing. Behind what is not read the end cannot be seen, so the node is asked how many
    /// connections it has: those of the others are few.
    pub(crate) fn ignore(&mut self, scene: &Scene, stream: &Stream) -> Result<()> {
        /// Three that keep a rate, one of which may be on its way out.
        const OTHERS: f64 = 4.0;
        self.sent = self.sent.max(1);
        thread::sleep(Duration::from_secs(1)); // until all are there
        while self.has_time() {
            thread::sleep(Duration::from_millis(250));
            let scrape = scene.node.scrape()?;
            if scrape.value("ferrule_downstream_connections") <= OTHERS {
                self.closed();
                break;
            }
        }
        drop(stream.socket().shutdown(Shutdown::Both));
        Ok(())
    }
}

fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    line.chars().filter(|character| matches!(character, ' '..='~')).collect()
}
