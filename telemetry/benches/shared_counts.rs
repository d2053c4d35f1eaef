//! What a place costs that another process may see. `cargo bench -p telemetry --bench shared_counts`.
//!
//! The bar: not joined at most 2 ns more than an atomic that does the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use divan::{Bencher, black_box};
use telemetry::shared_counts::{Count, Counts, Key};

const MAX: u32 = 1_000;

fn main() {
    divan::main();
}

fn key() -> Key {
    Key::of(&[b"instance", b"x"])
}

fn shared() -> (Arc<Counts>, Count) {
    let counts = Counts::create(65_536).expect("a memory file");
    let count = counts.count(key());
    (counts, count)
}

/// Joined with one that counts the same.
fn joined() -> (Arc<Counts>, Count, Count) {
    let (counts, count) = shared();
    let (other, theirs) = shared();
    let file = other.file().try_clone_to_owned().expect("a descriptor");
    counts.join(file).expect("it is one of ours");
    (counts, count, theirs)
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn atomic_add_and_sub(bencher: Bencher<'_, '_>) {
    let count = AtomicU32::new(0);
    bencher.bench(|| {
        let taken = black_box(&count).fetch_add(1, SeqCst) < black_box(MAX);
        count.fetch_sub(1, SeqCst);
        taken
    });
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn atomic_exactly(bencher: Bencher<'_, '_>) {
    let count = AtomicU32::new(0);
    bencher.bench(|| {
        let one_more = |n| (n < black_box(MAX)).then(|| n + 1);
        let taken = black_box(&count).fetch_update(SeqCst, SeqCst, one_more).is_ok();
        count.fetch_sub(1, SeqCst);
        taken
    });
}

fn add_and_sub(bencher: Bencher<'_, '_>, count: &Count) {
    bencher.bench(|| {
        let taken = black_box(count).try_add(black_box(MAX));
        count.sub();
        taken
    });
}

fn exactly(bencher: Bencher<'_, '_>, count: &Count) {
    bencher.bench(|| {
        let taken = black_box(count).try_add_exactly(black_box(MAX));
        count.sub();
        taken
    });
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn private_add_and_sub(bencher: Bencher<'_, '_>) {
    add_and_sub(bencher, &Count::private());
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn shared_add_and_sub(bencher: Bencher<'_, '_>) {
    let (_counts, count) = shared();
    add_and_sub(bencher, &count);
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn shared_exactly(bencher: Bencher<'_, '_>) {
    let (_counts, count) = shared();
    exactly(bencher, &count);
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn joined_add_and_sub(bencher: Bencher<'_, '_>) {
    let (_counts, count, _theirs) = joined();
    add_and_sub(bencher, &count);
}

#[divan::bench(threads = [1, 2], sample_size = 10_000)]
fn joined_exactly(bencher: Bencher<'_, '_>) {
    let (_counts, count, _theirs) = joined();
    exactly(bencher, &count);
}

#[divan::bench]
fn a_key() -> Key {
    Key::of(&[b"instance", black_box(b"some-app"), black_box(b"some-instance"), &[0, 80]])
}
