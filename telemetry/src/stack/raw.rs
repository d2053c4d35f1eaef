//! A stack as it is written where nothing can be looked up: `file+0xoffset`, innermost first.

use std::fmt;

use super::modules::{self, Module};

/// Shows return addresses as offsets in their files, which `ferrule symbolize` or any debugger can
/// name later with the same build.
pub struct Raw<'a>(pub &'a [usize]);

impl fmt::Display for Raw<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pc) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            match modules::modules().iter().find(|module| module.code.contains(pc)) {
                Some(Module { base, path, .. }) => {
                    let name = path.rsplit('/').next().unwrap_or(path);
                    write!(f, "{name}+{:#x}", pc - base)?;
                }
                None => write!(f, "{pc:#x}")?,
            }
        }
        Ok(())
    }
}

/// Offsets of return addresses in the program's own file, for [`crate::symbols::child`]; what lies
/// elsewhere is left out.
///
/// Whoever names them looks one byte before each, inside of the call that returns there; so `at`, the
/// place where a thread was interrupted, comes first and as if it were returned to.
pub fn offsets(at: usize, returns: &[usize]) -> Vec<usize> {
    let Some(image) = modules::image() else { return Vec::new() };
    let inside = |pc: &usize| image.code.contains(pc);
    std::iter::once(at + 1)
        .chain(returns.iter().copied())
        .filter(inside)
        .map(|pc| pc - image.base)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ours_is_shown_by_its_place_in_our_file() {
        modules::map();
        let here = an_address_of_ours_is_shown_by_its_place_in_our_file as fn() as usize;
        let image = modules::image().expect("a program has an image");
        let shown = Raw(&[here, 1]).to_string();
        let offset = here - image.base;
        assert!(shown.ends_with(&format!("+{offset:#x} 0x1")), "{shown}");
        assert_eq!(offsets(here, &[here + 5, 1]), [offset + 1, offset + 5]);
    }
}
