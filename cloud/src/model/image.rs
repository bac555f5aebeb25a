//! What instances begin with.

use super::fields::{numbered, record};

numbered! {
    /// Whether an image can be used.
    pub enum ImageState {
        /// Its files are being uploaded.
        1 Creating,
        /// Instances can be made of it.
        2 Available,
    }
}

record! {
    /// An image: a disk's first bytes, and a kernel where the VMM loads one.
    pub struct Image / ImageRecordState {
        /// Its id: `m-…`.
        1 id: String as String [string];
        /// Whose it is; everybody's if nobody's.
        2 tenant: Option<String> as Option<String> [string, optional];
        /// Its name, unique among the images of its owner.
        3 name: String as String [string];
        /// What it is.
        4 description: String as String [string];
        /// `x86_64` or `arm64`.
        5 architecture: String as String [string];
        /// `linux` or `windows`.
        6 os_type: String as String [string];
        /// The system's name, for people.
        7 os_name: String as String [string];
        /// When it was made, in milliseconds since 1970.
        8 created: u64 as u64 [uint64];
        /// Whether it can be used.
        9 state: ImageState as u32 [uint32];
        /// The raw disk.
        10 disk: Option<ImageFile> as Option<ImageFileState> [message, optional];
        /// The kernel.
        11 kernel: Option<ImageFile> as Option<ImageFileState> [message, optional];
        /// The kernel's initial RAM disk.
        12 initrd: Option<ImageFile> as Option<ImageFileState> [message, optional];
        /// The kernel's command line.
        13 cmdline: String as String [string];
    }
}

record! {
    /// One file of an image. It never changes.
    pub struct ImageFile / ImageFileState {
        /// Its id, and its name in the folder of images: `m-….disk`, `m-….kernel`, `m-….initrd`.
        1 id: String as String [string];
        /// Its size in bytes.
        2 size: u64 as u64 [uint64];
        /// Its SHA-256, in 64 lower-case hexadecimal digits.
        3 sha256: String as String [string];
    }
}
