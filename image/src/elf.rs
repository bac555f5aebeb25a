//! The little of ELF and of the x86 boot protocol that finds a module's dependencies and a kernel inside a bzImage.
//!
//! Files come from Debian packages; still every offset is checked, a broken download ends with an error.

/// The contents of a section of a 64-bit little-endian ELF file.
pub(crate) fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize_at::<8>(file, 0x28)?;
    let size = usize_at::<2>(file, 0x3a)?;
    let count = usize_at::<2>(file, 0x3c)?;
    let names = usize_at::<2>(file, 0x3e)?;
    let header = |index: usize| file.get(table.checked_add(index.checked_mul(size)?)?..);
    let contents = |header: &[u8]| {
        let start = usize_at::<8>(header, 0x18)?;
        file.get(start..start.checked_add(usize_at::<8>(header, 0x20)?)?)
    };
    let strings = contents(header(names)?)?;
    for index in 0..count {
        let header = header(index)?;
        let rest = strings.get(usize_at::<4>(header, 0)?..)?;
        if rest.split(|b| *b == 0).next()? == name.as_bytes() {
            return contents(header);
        }
    }
    None
}

/// The names of the modules that a module needs, from its `.modinfo`.
pub(crate) fn module_dependencies(module: &[u8]) -> Option<Vec<String>> {
    let entry = section(module, ".modinfo")?
        .split(|b| *b == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))?;
    let text = String::from_utf8_lossy(entry);
    Some(text.split(',').filter(|n| !n.is_empty()).map(str::to_owned).collect())
}

/// The compressed kernel inside a bzImage (Documentation/arch/x86/boot.rst, `payload_offset`).
pub(crate) fn bzimage_payload(image: &[u8]) -> Option<&[u8]> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = ((sectors + 1) * 512).checked_add(usize_at::<4>(image, 0x248)?)?;
    image.get(start..start.checked_add(usize_at::<4>(image, 0x24c)?)?)
}

fn usize_at<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let mut value = [0; 8];
    value[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    usize::try_from(u64::from_le_bytes(value)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_this_very_program_are_found() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(section(&program, ".text").is_some_and(|text| text.len() > 1000));
        assert!(section(&program, ".no-such-section").is_none());
        for cut in [0, 5, 64, program.len() / 2] {
            assert!(section(&program[..cut], ".text").is_none());
        }
    }

    #[test]
    fn a_file_that_is_no_kernel_has_no_payload() {
        assert!(bzimage_payload(&[0; 4096]).is_none());
        let mut image = vec![0; 4096];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x1f1] = 1;
        image[0x248] = 16;
        image[0x24c] = 32;
        assert_eq!(bzimage_payload(&image).map(<[u8]>::len), Some(32));
        image[0x24f] = 0xff;
        assert!(bzimage_payload(&image).is_none());
    }
}
