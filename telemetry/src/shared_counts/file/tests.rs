use std::fs::File;

use rustix::io::dup;

use super::*;

fn sealed(size: u64, head: [u64; 2]) -> OwnedFd {
    let file = unsealed(size, head);
    fcntl_add_seals(&file, SEALS).unwrap();
    file
}

fn unsealed(size: u64, head: [u64; 2]) -> OwnedFd {
    let file = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let words: Vec<u8> = head.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::io::write(&file, &words).unwrap();
    ftruncate(&file, size).unwrap();
    file
}

fn head(version: u32, rows: u32) -> [u64; 2] {
    [MAGIC, u64::from(version) << 32 | u64::from(rows)]
}

#[test]
fn only_a_file_that_cannot_change_its_size_and_says_what_it_is_is_mapped() {
    let refused = |file| Rows::open(file).err().map(|error| error.to_string());
    // The control: what the other cases differ from is accepted.
    assert_eq!(refused(sealed(bytes(8), head(VERSION, 8))), None);
    let cases = [
        (unsealed(bytes(8), head(VERSION, 8)), "not sealed"),
        (tempfile::tempfile().unwrap().into(), "not sealed"),
        (sealed(0, head(VERSION, 8)), "no number of rows"),
        (sealed(64, head(VERSION, 0)), "no number of rows"),
        (sealed(bytes(8) - 1, head(VERSION, 8)), "no number of rows"),
        (sealed(bytes(ROWS_MAX) + 64, head(VERSION, ROWS_MAX as u32 + 1)), "no number of rows"),
        (sealed(bytes(8), [MAGIC + 1, head(VERSION, 8)[1]]), "not one of counts"),
        (sealed(bytes(8), [0, 0]), "not one of counts"),
        (sealed(bytes(8), head(VERSION + 1, 8)), "version 2, this process knows 1"),
        (sealed(bytes(8), head(VERSION, 9)), "says that it has 9 rows and is of 576 bytes"),
        (sealed(bytes(8), head(VERSION, u32::MAX)), "says that it has"),
    ];
    for (file, expected) in cases {
        let error = refused(file).expect(expected);
        assert!(error.contains(expected), "{error}: {expected}");
    }
}

#[test]
fn who_gets_the_descriptor_can_neither_resize_nor_write() {
    let rows = Rows::create(8).unwrap();
    let file = File::from(dup(rows.file()).unwrap());
    assert!(file.set_len(0).is_err());
    assert!(file.set_len(bytes(9)).is_err());
    assert!(rustix::io::pwrite(&file, &[1], 0).is_err());
    assert!(Rows::map(dup(rows.file()).unwrap(), 8, ProtFlags::READ | ProtFlags::WRITE).is_err());
    // The control: the owner goes on writing, and it is seen.
    let theirs = Rows::open(dup(rows.file()).unwrap()).unwrap();
    let key = Key::of(&[b"a"]);
    let row = rows.window(key).next().unwrap();
    row.take(key);
    row.count.store(7, Relaxed);
    assert_eq!(theirs.count(key, &AtomicU32::new(0)), 7);
    assert!(theirs.is_same_file(&rows) && !theirs.is_same_file(&Rows::create(8).unwrap()));
}

#[test]
fn as_many_rows_as_may_be_and_at_least_one() {
    assert!(Rows::create(0).is_err() && Rows::create(ROWS_MAX + 1).is_err());
    for rows in [1, WINDOW - 1, WINDOW, ROWS_MAX] {
        let rows = Rows::create(rows).unwrap();
        let window = rows.window(Key([1, u64::MAX])).map(ptr::from_ref);
        let distinct: std::collections::BTreeSet<_> = window.collect();
        assert_eq!(distinct.len(), WINDOW.min(rows.len() - 1));
        assert!(!distinct.contains(&ptr::from_ref(rows.head())));
        // A page, not the whole.
        assert!(rows.bytes() <= 2 * 65_536, "{}", rows.bytes());
    }
}

#[test]
fn a_key_is_found_where_it_moved_to() {
    let rows = Rows::create(64).unwrap();
    let (key, there) = (Key::of(&[b"a"]), AtomicU32::new(0));
    for step in [0, 5, 15, 3] {
        let row = rows.window(key).nth(step).unwrap();
        row.take(key);
        row.count.store(step as u32 + 1, Relaxed);
        assert_eq!(rows.count(key, &there), step as u32 + 1);
        assert_eq!(there.load(Relaxed), step as u32);
        row.clear();
        assert_eq!(rows.count(key, &there), 0);
    }
}
