//! Sizes as people write them: `512M`, `10G`, `1T`, or plain bytes.

/// Bytes; `K`, `M`, `G` and `T` are powers of 1024, with `iB` or `B` behind them if one likes.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let shift = match unit.to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" if unit.len() < 2 => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => {
            return Err(format!(
                "`{text}` is not a size: use bytes or a unit, for example 512M, 10G"
            ));
        }
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{text}` is not a size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is too large"))
}

/// Bytes in the largest unit that says them in few digits.
pub fn show(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >= 1 << shift {
            let whole = bytes as f64 / (1u64 << shift) as f64;
            let exact = bytes.is_multiple_of(1 << shift);
            return if exact { format!("{whole} {unit}") } else { format!("{whole:.2} {unit}") };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4k", 4096),
            ("10G", 10 << 30),
            ("10GB", 10 << 30),
            ("10GiB", 10 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "1X", "1.5G", "-1", "1iB", "99999999999T", "1 G"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(show(10 << 30), "10 GiB");
        assert_eq!(show(1536 << 20), "1.50 GiB");
        assert_eq!(show(512), "512 B");
    }
}
