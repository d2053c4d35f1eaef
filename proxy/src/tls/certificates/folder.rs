//! What is known of the folder of certificates: per pair, its last good version and what is wrong
//! with the files as they are.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};

use super::warn_of_expiry;
use crate::tls::pair::{self, Pair, PairError};
use crate::tls::reasons;

/// Every pair by its name. As many as the operator puts there: no stranger adds a file.
#[derive(Default)]
pub(super) struct Folder {
    entries: BTreeMap<String, Entry>,
}

/// One pair of files.
#[derive(Default)]
struct Entry {
    /// How the files looked when they were read; `None` = read them again.
    stamp: Option<[Stamp; 2]>,
    /// What was in them, so that a touched file is not news.
    digest: Option<[u8; 32]>,
    good: Option<Pair>,
    problem: Option<String>,
}

/// Enough of a file's metadata to see that it is another one.
#[derive(PartialEq, Eq)]
struct Stamp {
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file that changed so shortly before it was read may change again without showing it in its
/// metadata, whose clock is coarse. (git calls such an entry racily clean.)
const RACY: Duration = Duration::from_secs(2);

// === impl Folder ===

impl Folder {
    /// Reads what is new or changed in `directory`, forgets what is gone. Says whether anything
    /// that is served or listed has changed.
    pub(super) fn scan(&mut self, directory: &Path, now: SystemTime) -> io::Result<bool> {
        let names = names(directory)?;
        let mut changed = false;
        self.entries.retain(|name, _| {
            let stays = names.contains(name);
            if !stays {
                changed = true;
                tracing::info!(file = format!("{name}.pem"), "certificate removed");
            }
            stays
        });
        for name in names {
            changed |= self.entries.entry(name.clone()).or_default().read(directory, &name, now);
        }
        Ok(changed)
    }

    /// Name, problem, and the version that is served.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, Option<&str>, Option<&Pair>)> {
        self.entries
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.problem.as_deref(), entry.good.as_ref()))
    }

    pub(super) fn warn_of_expiry(&self, now: SystemTime) {
        for (name, entry) in &self.entries {
            if let Some(pair) = &entry.good {
                warn_of_expiry(&pair.leaf, &format!("{name}.pem"), now);
            }
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Reads the files again if they look different; says whether that changed anything.
    fn read(&mut self, directory: &Path, name: &str, now: SystemTime) -> bool {
        let chain = directory.join(format!("{name}.pem"));
        let key = directory.join(format!("{name}.key"));
        let stamp = stamp(&chain, &key, now);
        if stamp.is_some() && stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        let chain = pair::read(&chain).map_err(PairError::ReadChain);
        let key = pair::read(&key).map_err(PairError::ReadKey);
        let read = chain.and_then(|chain| Ok((chain, key?)));
        match read {
            Ok((chain, key)) => {
                let digest = digest_of(&chain, &key);
                if self.digest == Some(digest) {
                    return false;
                }
                self.digest = Some(digest);
                match Pair::parse(&chain, &key).and_then(has_name) {
                    Ok(pair) => self.accept(name, pair, now),
                    Err(error) => self.quarantine(name, &error),
                }
            }
            Err(error) => {
                self.digest = None;
                self.quarantine(name, &error)
            }
        }
    }

    fn accept(&mut self, name: &str, pair: Pair, now: SystemTime) -> bool {
        let file = format!("{name}.pem");
        tracing::info!(file, names = pair.leaf.dns_names.len(), "certificate loaded");
        warn_of_expiry(&pair.leaf, &file, now);
        self.good = Some(pair);
        self.problem = None;
        true
    }

    fn quarantine(&mut self, name: &str, error: &PairError) -> bool {
        let problem = reasons(error);
        if self.problem.as_ref() == Some(&problem) {
            return false; // said once is enough
        }
        let file = format!("{name}.{}", if error.is_of_key() { "key" } else { "pem" });
        let still_served = self.good.is_some();
        tracing::warn!(file, reason = problem, still_served, "certificate quarantined");
        self.problem = Some(problem);
        true
    }
}

/// The pairs in `directory`. The chain makes the pair: without it the pair is gone; a key that is
/// missing is a fault, most likely of a tool that writes the two files one after the other.
fn names(directory: &Path) -> io::Result<std::collections::BTreeSet<String>> {
    let mut names = std::collections::BTreeSet::new();
    for entry in fs::read_dir(directory)? {
        let file = entry?.file_name();
        // Hidden files are other tools' halves of an atomic write.
        if let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".pem"))
            && !name.is_empty()
            && !name.starts_with('.')
        {
            names.insert(name.to_owned());
        }
    }
    Ok(names)
}

fn has_name(pair: Pair) -> Result<Pair, PairError> {
    if pair.leaf.dns_names.is_empty() { Err(PairError::NoName) } else { Ok(pair) }
}

fn digest_of(chain: &[u8], key: &[u8]) -> [u8; 32] {
    let both =
        [digest(&SHA256, chain), digest(&SHA256, key)].map(|digest| digest.as_ref().to_vec());
    digest(&SHA256, &both.concat()).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// `None` when a file is missing or its metadata proves nothing yet.
fn stamp(chain: &Path, key: &Path, now: SystemTime) -> Option<[Stamp; 2]> {
    let stamp = |path| {
        let metadata = fs::metadata(path).ok()?;
        let settled = now.duration_since(changed_at(&metadata)).is_ok_and(|age| age > RACY);
        settled.then(|| Stamp {
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    };
    Some([stamp(chain)?, stamp(key)?])
}

fn changed_at(metadata: &Metadata) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(metadata.ctime().try_into().unwrap_or(0))
}
