//! Names from the symbol table alone: milliseconds, where debug information takes a second. What was
//! inlined has no name of its own there.

use std::error::Error;
use std::fs::File;
use std::path::Path;

use addr2line::demangle_auto;
use object::read::elf::{FileHeader as _, Sym as _};
use object::{Endianness, ReadCache, elf};

/// The function at each of `addresses`, where there is one; they are as the file numbers them.
///
/// # Errors
///
/// When the file cannot be read as ELF.
pub(super) fn names(
    program: &Path,
    addresses: &[u64],
) -> Result<Vec<Option<String>>, Box<dyn Error>> {
    let file = ReadCache::new(File::open(program)?);
    let header = elf::FileHeader64::<Endianness>::parse(&file)?;
    let endian = header.endian()?;
    let symbols = header.sections(endian, &file)?.symbols(endian, &file, elf::SHT_SYMTAB)?;
    let mut wanted: Vec<(u64, usize)> = addresses.iter().copied().zip(0..).collect();
    wanted.sort_unstable();
    let mut found = vec![None; addresses.len()];
    for symbol in symbols.iter() {
        let (start, size) = (symbol.st_value(endian), symbol.st_size(endian));
        if symbol.st_type() != elf::STT_FUNC || size == 0 {
            continue;
        }
        let first = wanted.partition_point(|(address, _)| *address < start);
        for (_, index) in wanted[first..].iter().take_while(|(address, _)| address - start < size) {
            let name = symbol.name(endian, symbols.strings())?;
            let name = String::from_utf8_lossy(name);
            found[*index].get_or_insert_with(|| demangle_auto(name, None).into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_found_by_an_address_inside_of_it() {
        let image = crate::stack::image().expect("the program is mapped");
        let start = a_function_is_found_by_an_address_inside_of_it as fn() as usize - image.base;
        let addresses = [u64::MAX, start as u64 + 3, 0];
        let names = names(Path::new("/proc/self/exe"), &addresses).expect("it is readable");
        let name = names[1].as_deref().expect("it has a name");
        assert!(name.contains("a_function_is_found_by_an_address_inside_of_it"), "{name}");
        assert_eq!((&names[0], &names[2]), (&None, &None));
    }

    #[test]
    fn what_is_no_program_has_no_names() {
        assert!(names(Path::new("/proc/self/status"), &[1]).is_err());
        assert!(names(Path::new("/nowhere"), &[1]).is_err());
    }
}
