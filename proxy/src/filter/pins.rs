//! What the filter and steering leave on the BPF file system: a folder per layout of the maps.

use std::io;
use std::path::{Path, PathBuf};

use ebpf_filter::pins::{self, Pinned};
use ebpf_filter::{FilterError, LAYOUT};

use telemetry::error::chain;

/// The folder that this version uses within `filter.pins`.
pub fn of_this_layout(folder: &Path) -> PathBuf {
    folder.join(format!("v{LAYOUT}"))
}

/// Everything that is pinned, by folder.
///
/// # Errors
///
/// When the folder is there and cannot be read.
pub fn show(folder: &Path) -> Result<Vec<(PathBuf, Vec<Pinned>)>, FilterError> {
    let shown = layouts(folder)?.into_iter().map(|layout| {
        let pinned = pins::show(&layout)?;
        Ok((layout, pinned))
    });
    shown.collect()
}

/// Removes everything that is pinned, and says how much that was.
///
/// # Errors
///
/// When something cannot be removed.
pub fn detach(folder: &Path) -> Result<usize, FilterError> {
    let mut removed = 0;
    for layout in layouts(folder)? {
        removed += pins::detach(&layout)?.len();
    }
    Ok(removed)
}

/// Makes room for this layout: a device takes one program, and nobody keeps the old maps.
pub(super) fn detach_other_layouts(folder: &Path) {
    let own = of_this_layout(folder);
    // A folder that cannot be read is said when it is used.
    for layout in layouts(folder).unwrap_or_default().into_iter().filter(|layout| *layout != own) {
        match pins::detach(&layout) {
            Ok(_) => {
                tracing::info!(folder = %layout.display(), "what another version left is detached")
            }
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%error, "what another version left stays");
            }
        }
    }
}

/// Detaches what would go on judging although nobody keeps it current.
pub(super) fn try_detach(folder: &Path) {
    match detach(folder) {
        Ok(0) => {}
        Ok(pins) => tracing::warn!(pins, "what an earlier node left is detached"),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(%error, "what an earlier node may have left stays");
        }
    }
}

fn layouts(folder: &Path) -> Result<Vec<PathBuf>, FilterError> {
    let failed =
        |source| FilterError::Pins { path: folder.to_owned(), reason: "cannot be listed", source };
    let entries = match folder.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut layouts = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix('v'));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            layouts.push(entry.path());
        }
    }
    layouts.sort_unstable();
    Ok(layouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_layouts_are_ours() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["v1", "v22", "v", "vx", "other"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let names = ["v1", "v22"].map(|name| folder.path().join(name));
        assert_eq!(layouts(folder.path()).unwrap(), names);
        assert!(layouts(&folder.path().join("none")).unwrap().is_empty());
        assert!(of_this_layout(folder.path()).starts_with(folder.path()));
    }
}
