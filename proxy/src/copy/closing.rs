//! How a WebSocket ends in a drain: a close frame 1001 to both sides, then some time for theirs.
//!
//! The client is told first, at the end of a frame. What it sends meanwhile still reaches the instance,
//! up to its own close frame, which is the instance's; only a client that sends none is spoken for.
//! What comes behind a close frame of ours is dropped, as nothing may follow one.

use std::task::Context;
use std::time::Duration;

use aws_lc_rs::rand;

use super::{Direction, Way};
use crate::alarm::{Alarm, Deadline};
use crate::drain::Departure;
use crate::http::websocket::frames::{self, Frames};
use crate::worker::{Phase, Worker};

/// What is to be said in one direction of a WebSocket.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    frames: Frames,
    said: Said,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Said {
    #[default]
    Nothing,
    /// At the next boundary.
    Due,
    Close,
}

/// The whole of it.
#[derive(Default)]
pub(super) struct Closing {
    departure: Departure,
    /// Made when a drain begins.
    alarm: Option<Alarm>,
    /// How long to wait for a pause, and what the instance had said before.
    pause: Option<(Deadline, u64)>,
    began: Option<Began>,
}

struct Began {
    /// When the instance is told, if the client has not done so.
    instance_at: Deadline,
    instance_told: bool,
    /// When the wait for both to answer ends, once both were told.
    end_at: Option<Deadline>,
    /// Both have answered.
    is_over: bool,
}

/// How a closing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    Open,
    /// A direction has something to say.
    Changed,
    /// Somebody did not answer in the time there is.
    Unanswered,
}

/// How long to wait for the instance to say something before the client is told to go. What crosses
/// the close, or comes behind it, is lost to somebody; where one side asks and the other answers, nothing
/// is on its way right behind an answer.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a client may take to answer before the instance is told without it.
const ECHO: Duration = Duration::from_secs(1);

/// How long both may take to answer.
const HANDSHAKE: Duration = Duration::from_secs(5);

// === impl Closing ===

impl Closing {
    /// Does what is due.
    pub(super) fn poll(
        &mut self,
        up: &mut Direction<'_>,
        down: &mut Direction<'_>,
        worker: &Worker,
        cx: &Context<'_>,
    ) -> Stand {
        let Self { departure, alarm, pause, began } = self;
        if alarm.is_none() && worker.phase() == Phase::Serving {
            return Stand::Open; // nearly always
        }
        let alarm = alarm.get_or_insert_with(|| worker.alarms.alarm());
        let Some(Began { instance_at, instance_told, end_at, is_over }) = began else {
            if let Some(at) = departure.at(worker, alarm) {
                if alarm.is_over(at) {
                    let (until, heard) =
                        *pause.get_or_insert_with(|| (alarm.deadline_in(PAUSE), down.moved.down()));
                    let is_pause = down.moved.down() > heard && !down.moved.owes_answer();
                    if !is_pause && !alarm.is_over(until) {
                        alarm.arm_at(until, cx);
                        return Stand::Open;
                    }
                    let instance_at = alarm.deadline_in(ECHO);
                    *began = Some(Began {
                        instance_at,
                        instance_told: false,
                        end_at: None,
                        is_over: false,
                    });
                    down.tell();
                    return Stand::Changed;
                }
                alarm.arm_at(at, cx);
            }
            return Stand::Open;
        };
        if up.is_told() && down.is_told() {
            let end_at = *end_at.get_or_insert_with(|| alarm.deadline_in(HANDSHAKE));
            if alarm.is_over(end_at) {
                return Stand::Unanswered;
            }
            alarm.arm_at(end_at, cx);
            if up.has_heard_all() && down.has_heard_all() && !*is_over {
                *is_over = true;
                up.hang_up();
                down.hang_up();
                return Stand::Changed;
            }
        } else if !alarm.is_over(*instance_at) {
            alarm.arm_at(*instance_at, cx);
        } else if !*instance_told {
            *instance_told = true;
            up.tell();
            return Stand::Changed;
        }
        Stand::Open
    }
}

// === impl Farewell ===

impl Farewell {
    /// To be told at the next boundary.
    pub(super) fn tell(&mut self) {
        if self.said == Said::Nothing {
            self.said = Said::Due;
        }
    }

    /// The close frame, if this is the time and place for it.
    pub(super) fn take_due(&mut self, way: Way) -> Option<Vec<u8>> {
        let is_due = self.said == Said::Due && self.frames.is_at_boundary();
        is_due.then(|| {
            self.said = Said::Close;
            close(way)
        })
    }

    /// Follows what was read, and cuts off what may not be passed on.
    pub(super) fn pass(&mut self, bytes: &mut Vec<u8>, way: Way) {
        match self.said {
            Said::Nothing => self.frames.follow(bytes),
            Said::Due => {
                let end = self.frames.to_boundary(bytes);
                let is_here = self.frames.is_at_boundary();
                self.frames.follow(&bytes[end..]);
                if is_here {
                    self.said = Said::Close;
                    bytes.truncate(end);
                    bytes.extend_from_slice(&close(way));
                }
            }
            Said::Close => {
                self.frames.follow(bytes);
                bytes.clear();
            }
        }
    }

    /// A close frame went this way: ours, or the source's.
    pub(super) fn has_said(&self) -> bool {
        self.said == Said::Close || self.has_heard()
    }

    /// The source has sent its close frame.
    pub(super) fn has_heard(&self) -> bool {
        self.frames.has_closed()
    }
}

fn close(way: Way) -> Vec<u8> {
    match way {
        Way::Down => frames::close().to_vec(),
        Way::Up => {
            let mut mask = [0; 4];
            // Zeros are a mask as well, and nobody can choose what is behind it.
            let _zeros = rand::fill(&mut mask);
            frames::masked_close(mask).to_vec()
        }
    }
}
