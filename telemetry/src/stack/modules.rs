//! What is mapped as code: the program, its libraries, the kernel's page.
//!
//! Read once from `/proc/self/maps` into fixed atomics, so that a signal handler can ask. Code that is
//! mapped later (nothing here loads libraries at run time) would end a walk, no worse.

use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// One file whose code is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Where its first byte is: what is subtracted from an address to find it in the file.
    pub base: usize,
    /// Executable addresses.
    pub code: std::ops::Range<usize>,
    pub path: String,
}

/// More mapped files than any build of ours has; what is beyond ends a walk.
const RANGES_MAX: usize = 32;

static COUNT: AtomicUsize = AtomicUsize::new(0);
static STARTS: [AtomicUsize; RANGES_MAX] = [const { AtomicUsize::new(0) }; RANGES_MAX];
static ENDS: [AtomicUsize; RANGES_MAX] = [const { AtomicUsize::new(0) }; RANGES_MAX];
static MODULES: OnceLock<Vec<Module>> = OnceLock::new();
static BUILD_ID: OnceLock<String> = OnceLock::new();

/// Learns what is mapped; before that no stack has a second frame. Called once at the start.
pub fn map() {
    modules();
}

/// The mapped modules, the program first.
pub fn modules() -> &'static [Module] {
    MODULES.get_or_init(|| {
        let modules = fs::read_to_string("/proc/self/maps").map_or_else(
            |_| Vec::new(),
            |maps| {
                let mut modules = parse(&maps);
                let program = fs::read_link("/proc/self/exe").unwrap_or_default();
                modules.sort_by_key(|module| {
                    module.path.trim_end_matches(" (deleted)") != program.to_string_lossy()
                        && module.path != program.to_string_lossy()
                });
                modules
            },
        );
        for (index, module) in modules.iter().take(RANGES_MAX).enumerate() {
            STARTS[index].store(module.code.start, Relaxed);
            ENDS[index].store(module.code.end, Relaxed);
        }
        COUNT.store(modules.len().min(RANGES_MAX), Release);
        modules
    })
}

/// The program itself.
pub fn image() -> Option<&'static Module> {
    modules().first()
}

/// Whether code is mapped at `address`. Async-signal-safe.
pub(super) fn is_code(address: usize) -> bool {
    (0..COUNT.load(Acquire))
        .any(|index| (STARTS[index].load(Relaxed)..ENDS[index].load(Relaxed)).contains(&address))
}

/// What tells this build from any other: the linker's id, in hexadecimal; empty when it wrote none.
pub fn build_id() -> &'static str {
    BUILD_ID.get_or_init(|| {
        // The notes are in the first pages of the file.
        let mut head = vec![0; 64 << 10];
        let read = fs::File::open("/proc/self/exe")
            .and_then(|mut file| std::io::Read::read(&mut file, &mut head));
        head.truncate(read.unwrap_or_default());
        note(&head).map(hex).unwrap_or_default()
    })
}

/// Finds the GNU build id note: name size 4, type 3, name "GNU\0".
fn note(head: &[u8]) -> Option<&[u8]> {
    const HEAD: &[u8] = &[3, 0, 0, 0, b'G', b'N', b'U', 0];
    let at = head.windows(HEAD.len()).position(|window| window == HEAD)?;
    let size = head.get(at.checked_sub(4)?..at)?;
    let size = u32::from_le_bytes(size.try_into().ok()?) as usize;
    head.get(at + HEAD.len()..)?.get(..size).filter(|id| (8..=64).contains(&id.len()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

/// One module per file with code in it; see proc_pid_maps(5).
fn parse(maps: &str) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut base = (String::new(), 0);
    for line in maps.lines() {
        let mut fields = line.splitn(6, ' ');
        let range = fields.next().and_then(|range| range.split_once('-'));
        let (Some((start, end)), Some(mode)) = (range, fields.next()) else { continue };
        let (Ok(start), Ok(end)) =
            (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
        else {
            continue;
        };
        let path = fields.nth(3).unwrap_or_default().trim();
        if path.is_empty() || path == "[vsyscall]" {
            continue;
        }
        // Mappings of one file follow each other, and the first one is its beginning.
        if base.0 != path {
            base = (path.to_owned(), start);
        }
        if !mode.contains('x') {
            continue;
        }
        match modules.last_mut() {
            Some(module) if module.path == path && module.base == base.1 => module.code.end = end,
            _ => modules.push(Module { base: base.1, code: start..end, path: path.to_owned() }),
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_become_modules() {
        let maps = "\
5581a0000000-5581a0010000 r--p 00000000 fe:00 12   /usr/bin/ferrule
5581a0010000-5581a0090000 r-xp 00010000 fe:00 12   /usr/bin/ferrule
5581a0090000-5581a0098000 rw-p 00090000 fe:00 12   /usr/bin/ferrule
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
7f0000200000-7f0000228000 r--p 00000000 fe:00 13   /usr/lib/libc.so.6
7f0000228000-7f00003b0000 r-xp 00028000 fe:00 13   /usr/lib/libc.so.6
7ffff7fc9000-7ffff7fcb000 r-xp 00000000 00:00 0    [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]
";
        let module = |base, code, path: &str| Module { base, code, path: path.to_owned() };
        let expected = [
            module(0x5581_a000_0000, 0x5581_a001_0000..0x5581_a009_0000, "/usr/bin/ferrule"),
            module(0x7f00_0020_0000, 0x7f00_0022_8000..0x7f00_003b_0000, "/usr/lib/libc.so.6"),
            module(0x7fff_f7fc_9000, 0x7fff_f7fc_9000..0x7fff_f7fc_b000, "[vdso]"),
        ];
        assert_eq!(parse(maps), expected);
        assert_eq!(parse("nonsense\n\n-\nx-y r-xp 0 0 0 /a\n"), []);
    }

    #[test]
    fn the_program_comes_first_and_holds_this_function() {
        let image = image().expect("the program is mapped");
        assert!(image.code.contains(&(maps_become_modules as fn() as usize)), "{image:x?}");
        assert!(is_code(maps_become_modules as fn() as usize));
        assert!(!is_code(0) && !is_code((&raw const COUNT) as usize));
    }

    #[test]
    fn a_build_has_an_id() {
        let id = build_id();
        assert!(id.len() >= 16 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id:?}");
        assert_eq!(note(b"\x01\0\0\0\x03\0\0\0GNU\0x"), None);
        assert_eq!(note(b"\x03\0\0\0GNU\0"), None);
        assert_eq!(note(b"\x08\0\0\0\x03\0\0\0GNU\x0012345678"), Some(&b"12345678"[..]));
    }
}
