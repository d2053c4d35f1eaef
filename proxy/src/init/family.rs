//! Which process is the node, which were it before, and when all of it is over: without a process.

use std::mem;

use rustix::process::Pid;

/// The node at present and its predecessors that have not ended.
pub(super) struct Family {
    main: Main,
    earlier: Vec<Pid>,
}

enum Main {
    Runs(Pid),
    /// With its exit code, if somebody who knows it has told.
    Ended(Pid, Option<u8>),
}

/// What follows from an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    /// The node has failed; a predecessor that lives may take over again.
    Hope,
    End(u8),
}

/// `EX_SOFTWARE`: a node has ended, and nobody knows how.
const UNKNOWN: u8 = 70;

// === impl Family ===

impl Family {
    pub(super) fn new(node: Pid) -> Self {
        Self { main: Main::Runs(node), earlier: Vec::new() }
    }

    /// The node, while it runs.
    pub(super) fn main(&self) -> Option<Pid> {
        match self.main {
            Main::Runs(pid) => Some(pid),
            Main::Ended(..) => None,
        }
    }

    /// Who gets what is sent to the node: when it has ended, what it left behind.
    pub(super) fn addressees(&self) -> Vec<Pid> {
        self.main().map_or_else(|| self.earlier.clone(), |pid| vec![pid])
    }

    /// `pid` is the node from now on.
    pub(super) fn follow(&mut self, pid: Pid) {
        self.earlier.retain(|earlier| *earlier != pid);
        if let Main::Runs(before) = mem::replace(&mut self.main, Main::Runs(pid))
            && before != pid
        {
            self.earlier.push(before);
        }
    }

    /// A process has ended. It may be reported twice, once without its exit code.
    pub(super) fn ended(&mut self, pid: Pid, code: Option<u8>) -> Next {
        self.earlier.retain(|earlier| *earlier != pid);
        let was_main = match self.main {
            Main::Runs(main) => main == pid,
            Main::Ended(main, known) => main == pid && known.is_none() && code.is_some(),
        };
        if was_main {
            self.main = Main::Ended(pid, code);
        }
        match self.main {
            Main::Ended(..) if self.earlier.is_empty() => Next::End(self.exit_code()),
            Main::Ended(..) if was_main && self.exit_code() != 0 => Next::Hope,
            // One that ended as it should leaves its predecessors the time they were given.
            Main::Ended(..) | Main::Runs(_) => Next::Go,
        }
    }

    pub(super) fn exit_code(&self) -> u8 {
        match self.main {
            Main::Ended(_, code) => code.unwrap_or(UNKNOWN),
            Main::Runs(_) => UNKNOWN,
        }
    }
}

// === impl Next ===

impl Next {
    /// Whichever is nearer to the end; of two ends the later, which knows more.
    pub(super) fn and_then(self, later: Self) -> Self {
        match (self, later) {
            (_, end @ Self::End(_)) | (end @ Self::End(_), _) => end,
            (Self::Hope, _) | (_, Self::Hope) => Self::Hope,
            (Self::Go, Self::Go) => Self::Go,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    #[test]
    fn a_node_alone_ends_with_its_code() {
        for code in [0, 64, 137] {
            let mut family = Family::new(pid(2));
            assert_eq!(family.ended(pid(3), Some(1)), Next::Go, "an orphan");
            assert_eq!(family.ended(pid(2), Some(code)), Next::End(code));
        }
    }

    #[test]
    fn after_an_upgrade_the_successor_counts() {
        let mut family = Family::new(pid(2));
        family.follow(pid(20));
        assert_eq!(family.addressees(), [pid(20)]);
        assert_eq!(family.ended(pid(2), Some(9)), Next::Go);
        family.follow(pid(30));
        assert_eq!(family.ended(pid(20), Some(0)), Next::Go);
        assert_eq!(family.ended(pid(30), Some(7)), Next::End(7));
    }

    #[test]
    fn a_node_that_stops_waits_for_its_predecessor_and_its_code_is_kept() {
        let mut family = Family::new(pid(2));
        family.follow(pid(20));
        assert_eq!(family.ended(pid(20), Some(0)), Next::Go);
        assert_eq!(family.addressees(), [pid(2)]);
        assert_eq!(family.ended(pid(2), Some(1)), Next::End(0));
    }

    #[test]
    fn a_predecessor_takes_over_again() {
        let mut family = Family::new(pid(2));
        family.follow(pid(20));
        assert_eq!(family.ended(pid(20), None), Next::Hope);
        family.follow(pid(2));
        assert_eq!(family.main(), Some(pid(2)));
        assert_eq!(family.ended(pid(20), None), Next::Go, "told twice");
        assert_eq!(family.ended(pid(2), Some(0)), Next::End(0));
        // The other way round: it says so before the end is seen.
        let mut family = Family::new(pid(2));
        family.follow(pid(20));
        family.follow(pid(2));
        assert_eq!(family.ended(pid(20), None), Next::Go);
        assert_eq!(family.ended(pid(2), Some(3)), Next::End(3));
    }

    #[test]
    fn a_node_that_its_parent_reaped_has_failed_unless_its_code_is_learnt() {
        let check = |told: &[(i32, Option<u8>)], expected: Next| {
            let mut family = Family::new(pid(2));
            family.follow(pid(20));
            let nexts = told.iter().map(|(number, code)| family.ended(pid(*number), *code));
            assert_eq!(nexts.last(), Some(expected), "{told:?}");
        };
        check(&[(20, None), (2, Some(0))], Next::End(UNKNOWN));
        check(&[(20, None), (20, Some(137)), (2, Some(0))], Next::End(137));
        check(&[(20, Some(137)), (20, None), (2, Some(0))], Next::End(137));
        // Its parent ended without having reaped it, so that it comes last, and ours.
        check(&[(20, None), (2, Some(0)), (20, Some(9))], Next::End(9));
    }
}
