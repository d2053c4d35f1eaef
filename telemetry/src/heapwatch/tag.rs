//! On whose behalf memory is allocated: subsystem, app, declared owner.
//!
//! One word per thread, which the sampling hook copies into the sample. Setting it is a store, so the
//! data plane can do so at every poll; nothing is attached to blocks that are not sampled.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};

/// The parts of the edge that memory is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Subsystem {
    /// Nobody said.
    #[default]
    Other,
    Listener,
    Tls,
    Http1,
    Http2,
    Stack,
    Upstream,
    Mesh,
    Tcp,
    Inventory,
    Catalog,
    Health,
    Telemetry,
    Admin,
    Filter,
}

thread_local! {
    /// Constant and without a destructor: the hook may read it at any time.
    static TAG: Cell<Tag> = const { Cell::new(Tag(0)) };
}

/// Subsystem, owner and app in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Tag(u64);

/// Until it is dropped, what this thread allocates is charged as it says.
///
/// Guards of one thread are dropped in reverse order of their making; none is held across an await
/// (see [`tagged`]).
#[must_use = "the charge ends when the guard is dropped"]
pub struct Charge {
    before: Tag,
    /// Belongs to the thread that made it.
    not_send: std::marker::PhantomData<*const ()>,
}

/// Charges what this thread allocates to `subsystem`, on behalf of the same app as before.
#[inline]
pub fn tag(subsystem: Subsystem) -> Charge {
    let before = current();
    before.with_subsystem(subsystem).enter(before)
}

/// Charges what this thread allocates to the app whose number is `app`; 0 is none.
#[inline]
pub fn tag_app(app: u32) -> Charge {
    let before = current();
    before.with_app(app).enter(before)
}

/// Charges what `future` allocates while it is polled, on behalf of whatever app it is polled for.
pub fn tagged<F: Future>(subsystem: Subsystem, future: F) -> Tagged<F> {
    Tagged { subsystem, future }
}

pin_project! {
    /// See [`tagged`].
    pub struct Tagged<F> {
        subsystem: Subsystem,
        #[pin]
        future: F,
    }
}

#[inline]
pub(super) fn current() -> Tag {
    TAG.get()
}

// === impl Subsystem ===

impl Subsystem {
    pub const ALL: [Self; 15] = [
        Self::Other,
        Self::Listener,
        Self::Tls,
        Self::Http1,
        Self::Http2,
        Self::Stack,
        Self::Upstream,
        Self::Mesh,
        Self::Tcp,
        Self::Inventory,
        Self::Catalog,
        Self::Health,
        Self::Telemetry,
        Self::Admin,
        Self::Filter,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Other => "other",
            Self::Listener => "listener",
            Self::Tls => "tls",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Stack => "stack",
            Self::Upstream => "upstream",
            Self::Mesh => "mesh",
            Self::Tcp => "tcp",
            Self::Inventory => "inventory",
            Self::Catalog => "catalog",
            Self::Health => "health",
            Self::Telemetry => "telemetry",
            Self::Admin => "admin",
            Self::Filter => "filter",
        }
    }
}

// === impl Tag ===

impl Tag {
    pub(super) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    pub(super) const fn word(self) -> u64 {
        self.0
    }

    pub(super) const fn app(self) -> u32 {
        self.0 as u32
    }

    pub(super) fn subsystem(self) -> Subsystem {
        let number = usize::from((self.0 >> 32) as u8);
        Subsystem::ALL.get(number).copied().unwrap_or_default()
    }

    /// Number of the declared owner; 0 is none.
    pub(super) const fn owner(self) -> u8 {
        (self.0 >> 40) as u8
    }

    const fn with_subsystem(self, subsystem: Subsystem) -> Self {
        Self((self.0 & !(0xff << 32)) | ((subsystem as u64) << 32))
    }

    const fn with_app(self, app: u32) -> Self {
        Self((self.0 & !0xffff_ffff) | app as u64)
    }

    pub(super) const fn with_owner(self, owner: u8) -> Self {
        Self((self.0 & !(0xff << 40)) | ((owner as u64) << 40))
    }

    #[inline]
    pub(super) fn enter(self, before: Self) -> Charge {
        TAG.set(self);
        Charge { before, not_send: std::marker::PhantomData }
    }
}

// === impl Charge, Tagged ===

impl Drop for Charge {
    #[inline]
    fn drop(&mut self) {
        TAG.set(self.before);
    }
}

impl<F: Future> Future for Tagged<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _charge = tag(*this.subsystem);
        this.future.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_ends_where_its_guard_does() {
        assert_eq!(current().subsystem(), Subsystem::Other);
        let outer = tag(Subsystem::Tls);
        {
            let _app = tag_app(7);
            let _inner = tag(Subsystem::Http2);
            assert_eq!((current().subsystem(), current().app()), (Subsystem::Http2, 7));
        }
        assert_eq!((current().subsystem(), current().app()), (Subsystem::Tls, 0));
        drop(outer);
        assert_eq!(current(), Tag::default());
    }

    #[test]
    fn an_owner_outlives_a_change_of_subsystem() {
        let before = current();
        let _owner = before.with_owner(9).enter(before);
        let _charge = (tag(Subsystem::Filter), tag_app(u32::MAX));
        let tag = Tag::from_word(current().word());
        assert_eq!((tag.owner(), tag.subsystem(), tag.app()), (9, Subsystem::Filter, u32::MAX));
    }

    #[test]
    fn a_future_is_charged_while_it_is_polled_and_not_between() {
        let mut turns = 0;
        let _app = tag_app(3);
        let mut future = std::pin::pin!(tagged(
            Subsystem::Mesh,
            std::future::poll_fn(|_| {
                assert_eq!((current().subsystem(), current().app()), (Subsystem::Mesh, 3));
                turns += 1;
                if turns < 2 { Poll::Pending } else { Poll::Ready(()) }
            })
        ));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!((current().subsystem(), current().app()), (Subsystem::Other, 3));
        assert!(future.as_mut().poll(&mut cx).is_ready());
        assert_eq!((current().subsystem(), current().app()), (Subsystem::Other, 3));
    }

    #[test]
    fn every_subsystem_is_its_number() {
        for (number, subsystem) in Subsystem::ALL.into_iter().enumerate() {
            assert_eq!(subsystem as usize, number);
            assert_eq!(serde_json::json!(subsystem), subsystem.name());
        }
    }
}
