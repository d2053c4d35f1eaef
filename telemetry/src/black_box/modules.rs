//! Which files of code are mapped where, so that an address means something after the process.

use std::fs::{self, File};

use rustix::io::pread;

use super::layout;
use super::record::Module;

/// The program first, then its libraries, as mapped now.
pub(super) fn mapped() -> Vec<Module> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut modules = parse(&maps);
    modules.truncate(layout::MODULES.slots);
    for module in &mut modules {
        let Ok(file) = File::open(&module.path) else { continue };
        let elf = Elf::read(&file);
        module.build_id = elf.as_ref().and_then(|elf| elf.build_id(&file)).unwrap_or_default();
        if elf.is_some_and(|elf| elf.is_fixed) {
            module.bias = 0;
        }
    }
    modules
}

/// The file that holds `pc`, and the address there.
pub(super) fn locate(modules: &[Module], pc: u64) -> Option<(&Module, u64)> {
    let module = modules.iter().find(|module| (module.start..module.end).contains(&pc))?;
    Some((module, pc - module.bias))
}

/// From proc_pid_maps(5): `start-end perms offset device inode path`.
fn parse(maps: &str) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut code = Vec::new();
    for line in maps.lines() {
        let Some((start, end, permissions, offset, path)) = mapping(line) else { continue };
        if permissions.contains('x') {
            code.push(path.to_owned());
        }
        match modules.iter_mut().find(|module| module.path == path) {
            Some(module) => module.end = end,
            // The first mapping of a file begins with its ELF header, which is at address 0 of it.
            None => {
                let bias = start.wrapping_sub(offset);
                let (path, build_id) = (path.to_owned(), String::new());
                modules.push(Module { start, end, bias, path, build_id });
            }
        }
    }
    modules.retain(|module| code.contains(&module.path));
    modules
}

fn mapping(line: &str) -> Option<(u64, u64, &str, u64, &str)> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let (permissions, offset) = (words.next()?, words.next()?);
    let path = words.nth(2)?.trim_start();
    let hex = |text| u64::from_str_radix(text, 16).ok();
    path.starts_with('/').then_some((hex(start)?, hex(end)?, permissions, hex(offset)?, path))
}

/// The part of an ELF file's head that is needed here (elf(5), 64 bit, this machine's byte order).
struct Elf {
    /// Linked for a fixed address.
    is_fixed: bool,
    /// Where the notes are, and how long.
    notes: Vec<(u64, u64)>,
}

const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const NT_GNU_BUILD_ID: u32 = 3;

/// Neither has more in practice.
const PROGRAM_HEADERS_MAX: u16 = 64;
const NOTE_BYTES_MAX: usize = 1024;

impl Elf {
    fn read(file: &File) -> Option<Self> {
        let mut head = [0; 64];
        pread(file, &mut head[..], 0).ok().filter(|length| *length == head.len())?;
        let is_64 = head.starts_with(&[0x7f, b'E', b'L', b'F', 2]);
        if !is_64 {
            return None;
        }
        let is_fixed = u16_at(&head, 16)? == ET_EXEC;
        let (table, size) = (u64_at(&head, 32)?, u64::from(u16_at(&head, 54)?));
        let count = u16_at(&head, 56)?.min(PROGRAM_HEADERS_MAX);
        let mut notes = Vec::new();
        for index in 0..u64::from(count) {
            let mut header = [0; 56];
            let length = pread(file, &mut header[..], table.checked_add(index * size)?).ok()?;
            if length == header.len() && u32_at(&header, 0)? == PT_NOTE {
                notes.push((u64_at(&header, 8)?, u64_at(&header, 32)?));
            }
        }
        Some(Self { is_fixed, notes })
    }

    /// In hexadecimal digits.
    fn build_id(&self, file: &File) -> Option<String> {
        self.notes.iter().find_map(|(offset, length)| {
            let mut notes = [0; NOTE_BYTES_MAX];
            let read = pread(file, &mut notes[..], *offset).ok()?;
            let length = usize::try_from(*length).ok()?.min(read);
            let mut rest = &notes[..length];
            loop {
                let (name, length) = (u32_at(rest, 0)? as usize, u32_at(rest, 4)? as usize);
                let (kind, start) = (u32_at(rest, 8)?, 12 + name.next_multiple_of(4));
                let text = rest.get(start..start.checked_add(length)?)?;
                if kind == NT_GNU_BUILD_ID && rest.get(12..12 + name)? == b"GNU\0" {
                    return Some(text.iter().map(|byte| format!("{byte:02x}")).collect());
                }
                rest = rest.get(start + length.next_multiple_of(4)..)?;
            }
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_spans_its_mappings_and_is_biased_by_the_first() {
        let maps = "\
55d0c0000000-55d0c0010000 r--p 00000000 fe:00 12 /usr/bin/ferrule
55d0c0010000-55d0c0090000 r-xp 0000f000 fe:00 12 /usr/bin/ferrule
55d0c0090000-55d0c00a0000 rw-p 0008f000 fe:00 12 /usr/bin/ferrule
55d0c1000000-55d0c1020000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000100000 rw-s 00000000 fe:00 99 /var/lib/ferrule/blackbox
7f0000200000-7f0000300000 r-xp 00000000 fe:00 13 /lib/a file with spaces.so
";
        let modules = parse(maps);
        let paths: Vec<_> = modules.iter().map(|module| module.path.as_str()).collect();
        assert_eq!(paths, ["/usr/bin/ferrule", "/lib/a file with spaces.so"]);
        let (module, address) = locate(&modules, 0x55d0_c001_2345).unwrap();
        assert_eq!((module.path.as_str(), address), ("/usr/bin/ferrule", 0x1_2345));
        assert_eq!(locate(&modules, 0x7f00_0000_0010), None, "data is no code");
    }

    #[test]
    fn this_programs_own_code_is_located() {
        let modules = mapped();
        let here = this_programs_own_code_is_located as fn() as usize as u64;
        let (module, address) = locate(&modules, here).expect("this test is mapped code");
        let program = std::env::current_exe().unwrap();
        assert_eq!(module.path, program.to_string_lossy());
        assert!(address < fs::metadata(program).unwrap().len());
        assert_eq!(module.build_id, crate::stack::build_id());
    }
}
