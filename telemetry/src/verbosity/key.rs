//! The keys that sign tokens, and the file they are in.
//!
//! One line per key, `ID:BASE64`, 32 random bytes each; `#` begins a comment. The first key signs,
//! every key verifies. Nodes that share the file take each other's tokens; a node that finds no
//! file makes one of its own.
//!
//! Rotation: put a new line first, on every node; after [`TTL_MAX`](super::token::TTL_MAX), which
//! is as long as a token can live, remove the old one. A running node reads the file again when it
//! changes, and keeps the keys it has when the new file is no good.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// Keys in one file: one that signs and those that are on their way out.
const KEYS_MAX: usize = 8;

/// Bytes of a key's id.
pub(super) const ID_BYTES_MAX: usize = 16;

const FILE_BYTES_MAX: u64 = 4_096;

/// All keys of a node, the one that signs first. Never empty.
pub struct Keys {
    keys: Vec<Key>,
}

pub(super) struct Key {
    id: Box<str>,
    secret: hmac::Key,
}

/// How a file looked when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    len: u64,
    changed: (i64, i64),
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file {} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the key file {} cannot be made", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("the key file {} has mode {mode:04o}; others than its owner must have no right to it (chmod 600)", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("the key file {} is no regular file", path.display())]
    NoFile { path: PathBuf },
    #[error("line {line} of the key file {} must be ID:BASE64, an id of 1 to 16 of a-z, 0-9, - and _ and 32 bytes", path.display())]
    Line { path: PathBuf, line: usize },
    #[error("line {line} of the key file {} has an id that an earlier line has", path.display())]
    Twice { path: PathBuf, line: usize },
    #[error("the key file {} has no key", path.display())]
    Empty { path: PathBuf },
    #[error("the key file {} has more than {KEYS_MAX} keys or more than {FILE_BYTES_MAX} bytes", path.display())]
    TooMany { path: PathBuf },
    #[error("the system gives no random bytes")]
    Random,
}

// === impl Keys ===

impl Keys {
    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, others may read it, or a line is no key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        load(path).map(|(keys, _)| keys)
    }

    /// Reads the file at `path`; where there is none, makes one with a new key, for its owner only.
    ///
    /// # Errors
    ///
    /// As [`Self::load`], and when it cannot be made.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        load_or_create(path).map(|(keys, _)| keys)
    }

    /// A key that is in no file.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn random() -> Result<Self, KeyError> {
        let (id, bytes) = new_key()?;
        Ok(Self { keys: vec![Key::new(&id, &bytes)] })
    }

    /// The one that signs.
    pub(super) fn first(&self) -> &Key {
        &self.keys[0]
    }

    pub(super) fn by_id(&self, id: &[u8]) -> Option<&Key> {
        self.keys.iter().find(|key| key.id.as_bytes() == id)
    }

    /// The ids, the one that signs first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().map(|key| &*key.id)
    }
}

// === impl Key ===

impl Key {
    fn new(id: &str, bytes: &[u8; KEY_BYTES]) -> Self {
        Self { id: id.into(), secret: hmac::Key::new(hmac::HMAC_SHA256, bytes) }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> hmac::Tag {
        hmac::sign(&self.secret, bytes)
    }

    /// In constant time.
    pub(super) fn is_of(&self, bytes: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.secret, bytes, mac).is_ok()
    }
}

/// How the file at `path` looks now; `None` when that cannot be said.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    fs::metadata(path).ok().map(|metadata| stamp_of(&metadata))
}

fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    Stamp { inode: metadata.ino(), len: metadata.len(), changed }
}

pub(super) fn load_or_create(path: &Path) -> Result<(Keys, Stamp), KeyError> {
    match load(path) {
        Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            load(path)
        }
        loaded => loaded,
    }
}

/// The keys, and how the file looked that they were read from.
pub(super) fn load(path: &Path) -> Result<(Keys, Stamp), KeyError> {
    let failed = |source| KeyError::Read { path: path.to_owned(), source };
    // Without waiting: what is named may be a pipe that nobody writes to.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file =
        OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(KeyError::NoFile { path: path.to_owned() });
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(KeyError::TooMany { path: path.to_owned() });
    }
    Ok((parse(path, &text)?, stamp_of(&metadata)))
}

fn parse(path: &Path, text: &str) -> Result<Keys, KeyError> {
    let mut keys: Vec<Key> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = || KeyError::Line { path: path.to_owned(), line: index + 1 };
        let (id, secret) = line.split_once(':').ok_or_else(wrong)?;
        let secret = STANDARD.decode(secret.trim()).map_err(|_| wrong())?;
        let secret: [u8; KEY_BYTES] = secret.try_into().map_err(|_| wrong())?;
        if !is_id(id) {
            return Err(wrong());
        }
        if keys.iter().any(|key| &*key.id == id) {
            return Err(KeyError::Twice { path: path.to_owned(), line: index + 1 });
        }
        if keys.len() == KEYS_MAX {
            return Err(KeyError::TooMany { path: path.to_owned() });
        }
        keys.push(Key::new(id, &secret));
    }
    if keys.is_empty() { Err(KeyError::Empty { path: path.to_owned() }) } else { Ok(Keys { keys }) }
}

fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
    };
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(allowed)
}

/// Makes the file whole or not at all, and leaves one alone that somebody else made meanwhile.
fn create(path: &Path) -> Result<(), KeyError> {
    let failed = |source| KeyError::Create { path: path.to_owned(), source };
    let (id, bytes) = new_key()?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    // The draft of a process that had our id and died is nobody's.
    drop(fs::remove_file(&draft));
    let written = write(&draft, &id, &bytes).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    drop(fs::remove_file(&draft)); // if it stays it is a stray file, with mode 0600
    written.map_err(failed)
}

fn write(path: &Path, id: &str, bytes: &[u8; KEY_BYTES]) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let secret = STANDARD.encode(bytes);
    write!(
        file,
        "# Keys for ferrule-trace tokens, ID:BASE64 (32 bytes). The first signs, all verify.\n\
         # Nodes with the same file take each other's tokens. To rotate: put a new line first on\n\
         # every node, and remove the old one 15 minutes later.\n\
         {id}:{secret}\n"
    )?;
    file.sync_all()
}

/// An id and 32 bytes. The id is random as well, so that two nodes' own keys are told apart.
fn new_key() -> Result<(String, [u8; KEY_BYTES]), KeyError> {
    let mut id = [0; 4];
    let mut bytes = [0; KEY_BYTES];
    rand::fill(&mut id).and_then(|()| rand::fill(&mut bytes)).map_err(|_| KeyError::Random)?;
    Ok((format!("k{:08x}", u32::from_be_bytes(id)), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn file(folder: &Path, text: &str, mode: u32) -> PathBuf {
        let path = folder.join("trace.key");
        fs::write(&path, text).expect("the folder is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("the file is ours");
        path
    }

    #[test]
    fn a_missing_file_is_made_for_its_owner_only_and_read_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state/trace.key");
        let keys = Keys::load_or_create(&path).expect("the folder is ours");
        let mode = fs::metadata(&path).expect("it was made").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Keys::load_or_create(&path).expect("it is there");
        assert_eq!(keys.ids().collect::<Vec<_>>(), again.ids().collect::<Vec<_>>());
        let tag = keys.first().sign(b"text");
        assert!(again.first().is_of(b"text", tag.as_ref()));
        let left = fs::read_dir(path.parent().expect("a folder")).expect("ours").count();
        assert_eq!(left, 1, "no draft stays");
    }

    #[test]
    fn the_first_key_signs_and_all_verify() {
        let folder = tempfile::tempdir().expect("a folder");
        let old = file(folder.path(), &format!("old:{SECRET}\n"), 0o600);
        let tag = Keys::load(&old).expect("a key").first().sign(b"text");
        let new = "new:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";
        let both = file(folder.path(), &format!("# keys\n\n{new}\nold: {SECRET}\n"), 0o400);
        let keys = Keys::load(&both).expect("two keys");
        assert_eq!(keys.ids().collect::<Vec<_>>(), ["new", "old"]);
        assert!(!keys.first().is_of(b"text", tag.as_ref()));
        assert!(keys.by_id(b"old").expect("it is there").is_of(b"text", tag.as_ref()));
        assert!(keys.by_id(b"ol").is_none() && keys.by_id(b"").is_none());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for mode in [0o640, 0o604, 0o666, 0o601] {
            let path = file(folder.path(), &format!("a:{SECRET}\n"), mode);
            assert!(matches!(Keys::load(&path), Err(KeyError::Mode { .. })), "{mode:o}");
        }
        let path = file(folder.path(), &format!("a:{SECRET}\n"), 0o600);
        assert!(Keys::load(&path).is_ok());
    }

    #[test]
    fn each_mistake_has_a_name_and_tells_no_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let check = |text: &str, expected: &str| {
            let path = file(folder.path(), text, 0o600);
            let error = Keys::load_or_create(&path).err().expect("a mistake").to_string();
            assert!(error.contains(expected) && !error.contains("AAEC"), "{text}: {error}");
        };
        check("", "has no key");
        check("# only this\n", "has no key");
        check(&format!("a:{SECRET}\nb\n"), "line 2 of");
        check(&format!("A:{SECRET}\n"), "line 1 of");
        check(&format!(":{SECRET}\n"), "line 1 of");
        check(&format!("a.b:{SECRET}\n"), "line 1 of");
        check(&format!("{}:{SECRET}\n", "a".repeat(17)), "line 1 of");
        check(&format!("a:{}\n", &SECRET[4..]), "line 1 of");
        check(&format!("a:{SECRET}{SECRET}\n"), "line 1 of");
        check(&format!("a:{SECRET}\n\na:{SECRET}\n"), "line 3 of");
        let nine: String = (0..9).map(|key| format!("{key}:{SECRET}\n")).collect();
        check(&nine, "more than 8 keys");
        check(&"#".repeat(5_000), "more than 4096 bytes");
        let error = Keys::load_or_create(folder.path()).err().expect("that is a folder");
        assert!(matches!(error, KeyError::NoFile { .. }), "{error}");
    }
}
