//! Every parser of untrusted bytes, as a function of bytes: for fuzzers, and for the test below.

use crate::bundle::Manifest;
use crate::import;
use crate::qcow2::{Header, Reader};
use std::io::Write;

/// The header of a qcow2 image, and entries of its tables.
pub fn qcow2_header(data: &[u8]) {
    let _ = import::detect(data);
    if let Ok(header) = Header::parse(data) {
        for entry in data.chunks_exact(8).filter_map(|bytes| bytes.first_chunk()) {
            let entry = u64::from_be_bytes(*entry);
            let _ = header.l1_entry(entry);
            let _ = header.l2_entry(entry);
        }
    }
}

/// A whole qcow2 image.
pub fn qcow2_image(data: &[u8]) {
    let Ok(fd) = rustix::fs::memfd_create("bixi-fuzz", rustix::fs::MemfdFlags::CLOEXEC) else {
        return;
    };
    let mut file = std::fs::File::from(fd);
    if file.write_all(data).is_err() {
        return;
    }
    if let Ok(reader) = Reader::new(&file) {
        let (size, mut given) = (reader.size(), 0u64);
        // A disk of that size would be refused before it is read.
        if size > 16 << 20 {
            return;
        }
        let whole = reader.read(|length, content| {
            given += length;
            assert!(content.is_none_or(|content| content.len() as u64 == length));
            Ok(())
        });
        assert!(given <= size && (whole.is_err() || given == size));
    }
}

/// The manifest of a bundle.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        assert!(manifest.files.keys().all(|name| !name.contains('/')));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nearly() -> impl Strategy<Value = Vec<u8>> {
        let mut image = vec![0u8; 4096];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        image[23] = 9;
        image[30] = 8;
        image[39] = 2;
        image[46] = 2;
        for (at, value) in [(518, 4u8), (526, 6), (1030, 8), (1038, 8), (1046, 10)] {
            image[at] = value;
        }
        let text = br#"{"format":1,"name":"x","description":"","architecture":"x86_64","boot":"firmware","disk":{"file":"d"},"files":{"d":{"bytes":1,"sha256":""}}}"#;
        let damage = prop::collection::vec((0usize..1200, any::<u8>()), 0..8);
        let cut = prop::sample::select(vec![usize::MAX, 2000, 1100, 600, 90, 3]);
        (prop::sample::select(vec![image, text.to_vec()]), damage, cut).prop_map(
            |(mut bytes, damage, cut)| {
                for (at, value) in damage {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = value;
                    }
                }
                bytes.truncate(cut);
                bytes
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn every_parser_survives_anything(bytes in nearly()) {
            qcow2_header(&bytes);
            qcow2_image(&bytes);
            manifest(&bytes);
        }
    }
}
