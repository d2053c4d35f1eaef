//! Several gauges from one look at what they show.
//!
//! Some sources cost the same whether one number is taken from them or six: the allocator sums up
//! all its arenas, the kernel makes a whole file. A [`Source`] is looked at when the first gauge of
//! it is read for a snapshot, and all others take theirs from that look. What was seen belongs to the
//! snapshot and ends with it, so two at once share nothing.

use std::any::Any;
use std::rc::Rc;
use std::sync::Arc;

/// Where several gauges come from. Cloning shares it.
pub struct Source<T> {
    look: Arc<dyn Fn() -> T + Send + Sync>,
}

/// What one snapshot has looked at so far.
#[derive(Default)]
pub(super) struct Looks {
    /// By the place of the closure, which lives longer than any snapshot that reads it. A handful, so
    /// a list.
    seen: Vec<(usize, Rc<dyn Any>)>,
}

// === impl Source ===

impl<T: 'static> Source<T> {
    /// What `look` sees; at most once for each snapshot.
    pub fn new(look: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { look: Arc::new(look) }
    }

    pub(super) fn seen(&self, looks: &mut Looks) -> Rc<T> {
        let place = Arc::as_ptr(&self.look).cast::<()>() as usize;
        let known = looks.seen.iter().find(|(known, _)| *known == place);
        if let Some(Ok(seen)) = known.map(|(_, seen)| seen.clone().downcast()) {
            return seen;
        }
        let seen = Rc::new((self.look)());
        looks.seen.push((place, seen.clone()));
        seen
    }
}

impl<T> Clone for Source<T> {
    fn clone(&self) -> Self {
        Self { look: self.look.clone() }
    }
}
