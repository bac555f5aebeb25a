//! Guests of a few instructions that run on any KVM.

/// Echoes what is typed; powers off at a `q`, and when the power button is pressed.
pub const ECHO: &[u8] = &[
    0x66, 0xba, 0x00, 0xb0, // again: mov dx, power management status
    0x66, 0xed, // in ax, dx
    0xf6, 0xc4, 0x01, // test ah, power button
    0x75, 0x15, // jnz off
    0x66, 0xba, 0xfd, 0x03, // mov dx, line status
    0xec, // in al, dx
    0xa8, 0x01, // test al, data ready
    0x74, 0xec, // jz again
    0x66, 0xba, 0xf8, 0x03, // mov dx, data
    0xec, // in al, dx
    0xee, // out dx, al
    0x3c, 0x71, // cmp al, 'q'
    0x74, 0x02, // je off
    0xeb, 0xe0, // jmp again
    0x66, 0xba, 0x04, 0xb0, // off: mov dx, power management control
    0x66, 0xb8, 0x00, 0x20, // mov ax, sleep enable
    0x66, 0xef, // out dx, ax
    0xeb, 0xfe, // stay: jmp stay
];

/// Hears nothing.
pub const DEAF: &[u8] = &[0xf4, 0xeb, 0xfd];

/// A PVH kernel that consists of `code`.
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 64];
    image[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    image[18] = 62;
    image[32] = 64;
    image[54] = 56;
    image[56] = 2;
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut header = [0; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        for (at, value) in [(8, offset), (24, address), (32, len), (40, len)] {
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        image.extend_from_slice(&header);
    };
    segment(1, 200, 0x10_0000, code.len() as u64);
    segment(4, 176, 0, 20);
    image.extend_from_slice(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    image.extend_from_slice(b"Xen\0");
    image.extend_from_slice(&0x10_0000_u32.to_le_bytes());
    image.resize(200, 0);
    image.extend_from_slice(code);
    image
}
