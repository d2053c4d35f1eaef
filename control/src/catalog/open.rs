//! Opening the file: check, migrate, prepare, read; put aside what cannot be used.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{Loaded, rows};

/// Every version of the schema, as steps from the one before. Steps only add.
const STEPS: &[&str] = &[include_str!("schema/001.sql")];

/// Files that were put aside and are kept for whoever wants to know.
const ASIDE_MAX: usize = 3;

/// How long a statement waits for another process: the predecessor during an upgrade.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

const PAGE_BYTES: u64 = 4096;

/// Why a file cannot be used.
enum Unusable {
    /// The file itself is bad: a fresh one will do.
    Damaged(String),
    /// The disk or its permissions are: no other file would do better.
    Unavailable(rusqlite::Error),
}

/// Opens `file` for writing, or replaces it, or does without.
pub(super) fn open(file: &Path, bytes_max: u64) -> (Option<Connection>, Loaded) {
    let damage = match open_and_load(file, bytes_max) {
        Ok((connection, loaded)) => return (Some(connection), loaded),
        Err(Unusable::Unavailable(error)) => return (None, without(file, &error.to_string())),
        Err(Unusable::Damaged(damage)) => damage,
    };
    let aside = match put_aside(file) {
        Ok(aside) => aside,
        Err(error) => return (None, without(file, &error.to_string())),
    };
    let trouble = format!("{damage}; it was put aside as {}", aside.display());
    tracing::warn!(file = %file.display(), %trouble, "the catalog could not be used, a new one is made");
    match open_and_load(file, bytes_max) {
        Ok((connection, loaded)) => (Some(connection), Loaded { trouble: Some(trouble), ..loaded }),
        Err(Unusable::Damaged(damage)) => (None, without(file, &damage)),
        Err(Unusable::Unavailable(error)) => (None, without(file, &error.to_string())),
    }
}

/// Opens `file` for writing beside another process, or does without; a file that nobody can use is an
/// error, and what is wrong with it.
pub(super) fn open_shared(
    file: &Path,
    bytes_max: u64,
) -> Result<(Option<Connection>, Loaded), String> {
    match open_and_load(file, bytes_max) {
        Ok((connection, loaded)) => Ok((Some(connection), loaded)),
        Err(Unusable::Unavailable(error)) => Ok((None, without(file, &error.to_string()))),
        Err(Unusable::Damaged(damage)) => Err(damage),
    }
}

fn open_and_load(file: &Path, bytes_max: u64) -> Result<(Connection, Loaded), Unusable> {
    let mut connection = Connection::open(file)?;
    configure(&connection, bytes_max)?;
    check(&connection)?;
    migrate(&mut connection)?;
    rows::prepare(&connection)?;
    let loaded = rows::load(&connection)?;
    Ok((connection, loaded))
}

fn configure(connection: &Connection, bytes_max: u64) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(rows::STATEMENTS.len());
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // A power cut may lose the last commits but never the file, and the source has them too.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "cache_size", -8 * 1024)?; // KiB
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    let pages = i64::try_from(bytes_max / PAGE_BYTES).unwrap_or(i64::MAX);
    connection.pragma_update(None, "max_page_count", pages)
}

fn check(connection: &Connection) -> Result<(), Unusable> {
    let verdict: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(Unusable::Damaged(verdict)) }
}

fn migrate(connection: &mut Connection) -> Result<(), Unusable> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let Some(steps) = usize::try_from(version).ok().and_then(|version| STEPS.get(version..)) else {
        let known = STEPS.len();
        return Err(Unusable::Damaged(format!("its schema version is {version}, not {known}")));
    };
    if !steps.is_empty() {
        let transaction = connection.transaction()?;
        for step in steps {
            transaction.execute_batch(step)?;
        }
        let version = i64::try_from(STEPS.len()).expect("a handful of steps");
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// What can still be read of a file on a disk that cannot be written.
fn without(file: &Path, error: &str) -> Loaded {
    tracing::error!(file = %file.display(), error, "the catalog cannot be written; going on without");
    let loaded = open_immutable(file).and_then(|connection| rows::load(&connection));
    Loaded { trouble: Some(error.to_owned()), ..loaded.unwrap_or_default() }
}

/// Reads without locks, log and shared memory, none of which can be made on a read-only disk.
fn open_immutable(file: &Path) -> rusqlite::Result<Connection> {
    let mut uri = "file:".to_owned();
    for byte in file.as_os_str().as_encoded_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => uri.push(char::from(*byte)),
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(uri, flags)
}

/// Renames the file and what belongs to it to `….corrupt-<n>`, and forgets the oldest such.
fn put_aside(file: &Path) -> std::io::Result<PathBuf> {
    let mut numbers = aside_numbers(file)?;
    let next = numbers.last().map_or(1, |last| last + 1);
    let aside = suffixed(file, &format!(".corrupt-{next}"));
    std::fs::rename(file, &aside)?;
    for suffix in ["-wal", "-shm"] {
        // Usually absent; one that stays would be taken for the new file's.
        move_if_present(&suffixed(file, suffix), &suffixed(&aside, suffix))?;
    }
    numbers.push(next);
    for old in numbers.iter().rev().skip(ASIDE_MAX) {
        let old = suffixed(file, &format!(".corrupt-{old}"));
        for suffix in ["", "-wal", "-shm"] {
            remove_if_present(&suffixed(&old, suffix))?;
        }
    }
    Ok(aside)
}

/// The numbers of files put aside before, lowest first.
fn aside_numbers(file: &Path) -> std::io::Result<Vec<u64>> {
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let prefix = suffixed(Path::new(file.file_name().unwrap_or_default()), ".corrupt-");
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix.to_str()?));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn move_if_present(from: &Path, to: &Path) -> std::io::Result<()> {
    ignore_absent(std::fs::rename(from, to))
}

fn remove_if_present(path: &Path) -> std::io::Result<()> {
    ignore_absent(std::fs::remove_file(path))
}

fn ignore_absent(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

impl From<rusqlite::Error> for Unusable {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // `Unknown` is SQLITE_ERROR: the statement does not fit the schema that is there.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
            | None => Self::Damaged(error.to_string()),
            Some(_) => Self::Unavailable(error),
        }
    }
}
