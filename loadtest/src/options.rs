//! What every suite is told.

use std::path::{Path, PathBuf};

use clap::Args;

#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The binary under test.
    #[arg(long, global = true, default_value = "target/release/ferrule")]
    pub ferrule: PathBuf,
    /// Where `ferrule-leaky` and `ferrule-seeded` are, the controls that must fail.
    #[arg(long, global = true, default_value = "target/debug")]
    pub leaky: PathBuf,
    /// Where report.html and report.json are written.
    #[arg(long, global = true, default_value = "target/proof")]
    pub output: PathBuf,
    /// Less of everything: for every change instead of every release.
    #[arg(long, global = true)]
    pub short: bool,
    /// Bars that a busy machine can miss are told, and do not decide the exit code.
    #[arg(long, global = true)]
    pub forgive_timing: bool,
}

/// Which parts of a suite.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selection {
    /// Only parts whose name has one of these in it.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
}

impl Common {
    /// A binary beside the leaky ones, if it was built.
    pub(crate) fn leaky(&self, name: &str) -> Option<PathBuf> {
        Some(self.leaky.join(name)).filter(|path| Path::is_file(path))
    }
}

impl Selection {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }
}
