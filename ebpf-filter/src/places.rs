//! The search for the earliest place where a packet can be judged on this machine.

use std::os::fd::AsFd as _;

use crate::attach::{Interface, Place, own_cgroup};
use crate::config::{ActiveMode, Config, Mode};
use crate::error::{FilterError, chain};
use crate::object::{Object, Program};
use crate::pins;

/// The search for places.
pub(crate) struct Attaching<'a> {
    pub(crate) config: &'a Config,
    pub(crate) object: Object,
    pub(crate) reasons: &'a mut Vec<String>,
}

/// The order in which places on an interface are tried.
const ON_INTERFACES: [ActiveMode; 3] = [ActiveMode::Xdp, ActiveMode::XdpGeneric, ActiveMode::Tcx];

// === impl Attaching ===

impl Attaching<'_> {
    pub(crate) fn run(mut self) -> Result<Vec<(Place, ActiveMode)>, FilterError> {
        match self.config.mode {
            Mode::Xdp => self.everywhere(&[ActiveMode::Xdp]),
            Mode::XdpGeneric => self.everywhere(&[ActiveMode::XdpGeneric]),
            Mode::Tcx => self.everywhere(&[ActiveMode::Tcx]),
            Mode::Cgroup => Ok(vec![self.cgroup()?]),
            Mode::Auto | Mode::Off => match self.everywhere(&ON_INTERFACES) {
                Ok(places) => Ok(places),
                Err(error) => {
                    self.reasons.push(chain(&error));
                    Ok(vec![self.cgroup()?])
                }
            },
        }
    }

    /// On every interface, each in the first of these modes that it can.
    fn everywhere(
        &mut self,
        modes: &[ActiveMode],
    ) -> Result<Vec<(Place, ActiveMode)>, FilterError> {
        if self.config.interfaces.is_empty() {
            let mode = modes[0].as_str();
            return Err(FilterError::Configuration { mode, needs: "filter.interfaces" });
        }
        let interfaces: Result<Vec<_>, _> =
            self.config.interfaces.iter().map(|name| Interface::named(name)).collect();
        interfaces?.into_iter().map(|interface| self.on(interface, modes)).collect()
    }

    fn on(
        &mut self,
        interface: Interface,
        modes: &[ActiveMode],
    ) -> Result<(Place, ActiveMode), FilterError> {
        let place = |mode| {
            let interface = interface.clone();
            match mode {
                ActiveMode::Tcx => Place::Tcx { interface },
                mode => Place::Xdp { interface, generic: mode == ActiveMode::XdpGeneric },
            }
        };
        let pinned = |mode: &ActiveMode| place(*mode).pin(&self.config.pins).exists();
        // A place that holds already is kept: leaving it for an earlier one would be a gap, and a
        // reason to leave it is a change that an operator knows of.
        let mut modes = modes.to_vec();
        modes.sort_by_key(|mode| !pinned(mode));
        // A device takes one XDP link, so the other kind has to go first. This is a gap.
        for other in [ActiveMode::Xdp, ActiveMode::XdpGeneric] {
            if !modes.contains(&other) && modes[0] != ActiveMode::Tcx && pinned(&other) {
                pins::remove(&place(other).pin(&self.config.pins))?;
            }
        }
        let mut last = None;
        for mode in modes {
            match self.attach(place(mode), mode) {
                Ok(placed) => return Ok(placed),
                Err(error) => {
                    self.reasons.push(chain(&error));
                    last = Some(error);
                }
            }
        }
        Err(last.expect("there is a mode to try"))
    }

    fn cgroup(&mut self) -> Result<(Place, ActiveMode), FilterError> {
        let path = self.config.cgroup.clone().or_else(own_cgroup);
        let mode = ActiveMode::Cgroup.as_str();
        let needs = "filter.cgroup, or a cgroup v2 around the process";
        let path = path.ok_or(FilterError::Configuration { mode, needs })?;
        self.attach(Place::Cgroup(path), ActiveMode::Cgroup)
    }

    fn attach(
        &mut self,
        place: Place,
        mode: ActiveMode,
    ) -> Result<(Place, ActiveMode), FilterError> {
        let program = match mode {
            ActiveMode::Tcx => Program::Tcx,
            ActiveMode::Cgroup => Program::Cgroup,
            _ => Program::Xdp,
        };
        let loaded = self.object.program(program)?;
        place.attach(&self.config.pins, loaded.as_fd())?;
        pins::replace(&self.config.pins, program.as_str(), loaded.as_fd())?;
        Ok((place, mode))
    }
}
