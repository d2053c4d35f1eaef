//! The filter as the control thread holds it.

use std::path::{Path, PathBuf};

use crate::attach::Place;
use crate::capability;
use crate::config::{ActiveMode, Config, Mode};
use crate::counters::{Counters, Drop};
use crate::error::{FilterError, chain};
use crate::kernel::Kernel;
use crate::object::Object;
use crate::pins;
use crate::places::Attaching;
use crate::policy::AppPolicy;

/// Admission in the kernel, where the machine can; nothing at all where it cannot, and then the same
/// verdicts are given in user space.
///
/// Dropping it changes nothing in the kernel: what is attached is pinned, and goes with
/// [`pins::detach`] or when the next process says so.
pub struct Filter {
    mode: ActiveMode,
    interfaces: Vec<(String, ActiveMode)>,
    reasons: Vec<String>,
    kernel: Option<Kernel>,
}

// === impl Filter ===

impl Filter {
    /// Attaches the programs, or replaces those that an earlier process left attached. Maps that are
    /// pinned keep what they hold; until [`Filter::replace_all`] the programs judge by that.
    ///
    /// # Errors
    /// Only when a mode is forced that is not possible: the error names the capability, the kernel's
    /// feature or the interface that it lacks. In [`Mode::Auto`] that is a reason to go one step down
    /// ([`Filter::reasons`]).
    pub fn open(config: &Config) -> Result<Self, FilterError> {
        if config.mode == Mode::Off {
            // What an earlier process attached would go on judging by maps that nobody keeps.
            remove_links(&config.pins, &[])?;
            return Ok(Self::without_kernel(ActiveMode::Off));
        }
        let mut reasons = Vec::new();
        match Self::in_kernel(config, &mut reasons) {
            Ok(filter) => Ok(Self { reasons, ..filter }),
            Err(error) if config.mode != Mode::Auto => Err(error),
            Err(error) => {
                reasons.push(chain(&error));
                // Not with half of the interfaces, and not with maps that nobody keeps.
                if let Err(error) = remove_links(&config.pins, &[]) {
                    reasons.push(chain(&error));
                }
                Ok(Self { reasons, ..Self::without_kernel(ActiveMode::Userspace) })
            }
        }
    }

    /// Where packets are judged; with several interfaces, the latest of their places.
    pub fn mode(&self) -> ActiveMode {
        self.mode
    }

    /// Where they are judged, by interface. Empty where no interface is involved.
    pub fn interfaces(&self) -> &[(String, ActiveMode)] {
        &self.interfaces
    }

    /// Why places before this one were not possible, one sentence each.
    pub fn reasons(&self) -> &[String] {
        &self.reasons
    }

    /// Makes the maps say exactly this, whatever an earlier process left in them, and takes over from
    /// it: its [`Filter::apply`] fails from now on. Called at start, before anything else. A million
    /// addresses take seconds.
    ///
    /// # Errors
    /// When a map is full or fails. It then holds all of the old and a part of the new.
    pub fn replace_all(
        &mut self,
        apps: impl Iterator<Item = AppPolicy>,
    ) -> Result<(), FilterError> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.take_over()?;
        kernel.book.replace_all(&mut kernel.store, apps)
    }

    /// Adds an app, or replaces what it asked for; in force when this returns.
    ///
    /// # Errors
    /// [`FilterError::Full`] leaves the maps as they were. [`FilterError::Superseded`]: another process
    /// has taken over; to take it back call [`Filter::replace_all`].
    pub fn apply(&mut self, app: &AppPolicy) -> Result<(), FilterError> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.still_writer()?;
        kernel.book.apply(&mut kernel.store, app)
    }

    /// Removes an app: its addresses are nobody's when this returns. Unknown ones are no error.
    ///
    /// # Errors
    /// As [`Filter::apply`].
    pub fn remove(&mut self, app: &str) -> Result<(), FilterError> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.still_writer()?;
        kernel.book.remove(&mut kernel.store, app)
    }

    /// What the programs counted. One system call per app that has counters of its own. What cannot be
    /// read, because the kernel is out of memory, is missing and in the log.
    pub fn counters(&self) -> Counters {
        self.kernel.as_ref().map_or_else(Counters::default, Kernel::counters)
    }

    /// Takes the reports that are there, and gives the last ones, oldest first (256 at most).
    pub fn drops(&mut self) -> Vec<Drop> {
        self.kernel.as_mut().map_or_else(Vec::new, Kernel::drops)
    }

    /// Map, entries, capacity. After a large change the maps are counted once: a fifth of a second for
    /// a million addresses.
    pub fn occupancy(&self) -> Vec<(&'static str, usize, usize)> {
        self.kernel.as_ref().map_or_else(Vec::new, |kernel| kernel.store.occupancy())
    }

    /// Memory of this process for knowing what is in the maps, roughly, in bytes. Bounded by what the
    /// maps can hold.
    pub fn bytes(&self) -> usize {
        self.kernel.as_ref().map_or(0, |kernel| kernel.book.bytes())
    }

    fn without_kernel(mode: ActiveMode) -> Self {
        Self { mode, interfaces: Vec::new(), reasons: Vec::new(), kernel: None }
    }

    fn in_kernel(config: &Config, reasons: &mut Vec<String>) -> Result<Self, FilterError> {
        capability::check("the filter")?;
        pins::prepare(&config.pins)?;
        let mut object = Object::admission(&config.pins, &config.limits)?;
        // Before a program is attached, so that a dry run has dropped nothing.
        let kernel = Kernel::new(&mut object, config)?;
        let places = Attaching { config, object, reasons }.run()?;
        let wanted: Vec<_> = places.iter().map(|(place, _)| place.pin(&config.pins)).collect();
        remove_links(&config.pins, &wanted)?;
        let mode = places.iter().map(|(_, mode)| *mode).max().expect("something is attached");
        let interfaces = places.into_iter().filter_map(|(place, mode)| match place {
            Place::Xdp { interface, .. } | Place::Tcx { interface } => Some((interface.name, mode)),
            Place::Cgroup(_) | Place::Steering => None,
        });
        let interfaces = interfaces.collect();
        Ok(Self { mode, interfaces, reasons: Vec::new(), kernel: Some(kernel) })
    }
}

/// Detaches the filter everywhere else. Steering is not the filter's.
fn remove_links(pins: &Path, but: &[PathBuf]) -> Result<(), FilterError> {
    let steering = Place::Steering.pin(pins);
    let links = pins::links(pins)?.into_iter();
    links.filter(|link| *link != steering && !but.contains(link)).try_for_each(|l| pins::remove(&l))
}
