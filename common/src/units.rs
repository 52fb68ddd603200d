//! Sizes and durations as people write them in a config (`"4GiB"`, `"5s"`) and read them in a page.

use std::time::Duration;

/// Parses `"10ms"`, `"5s"`, `"3m"`, `"26h"`, `"7d"`; a whole number and one unit.
///
/// ```
/// use muster_common::units::parse_duration;
/// use std::time::Duration;
/// assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
/// assert!(parse_duration("90").is_err());
/// assert!(parse_duration("-1s").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let expected = || format!("expected a duration such as \"5s\", \"10m\" or \"26h\", found {text:?}");
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(expected()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

/// Parses `"512KiB"`, `"4GiB"`, `"1TiB"`, `"100B"`; decimal units (`kB`, `MB`, `GB`) count in thousands.
///
/// ```
/// use muster_common::units::parse_bytes;
/// assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
/// assert_eq!(parse_bytes("1kB"), Ok(1000));
/// assert!(parse_bytes("4G").is_err());
/// ```
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let expected = || format!("expected a size such as \"512MiB\" or \"4GiB\", found {text:?}");
    let number: u64 = number.parse().map_err(|_| expected())?;
    let unit_bytes: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(expected()),
    };
    number.checked_mul(unit_bytes).ok_or_else(|| format!("{text:?} is too large"))
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (&text[..digits], text[digits..].trim_start())
}

/// `"2.9 GiB"`: at most one decimal, binary units.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    if tenths % 10 == 0 || tenths >= 1000 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// `"40 ms"`, `"95 s"`, `"12 min"`, `"3 h 20 min"`, `"2 d 4 h"`.
pub fn human_duration(length: Duration) -> String {
    let seconds = length.as_secs();
    match seconds {
        0 => format!("{} ms", length.as_millis()),
        _ if seconds < 10 && length.subsec_millis() >= 100 => format!("{seconds}.{} s", length.subsec_millis() / 100),
        1..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => with_rest(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => with_rest(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

fn with_rest(big: u64, big_unit: &str, small: u64, small_unit: &str) -> String {
    if small == 0 { format!("{big} {big_unit}") } else { format!("{big} {big_unit} {small} {small_unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_it() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(3 << 30), "3 GiB");
        assert_eq!(human_bytes(3_113_851_290), "2.9 GiB");
        assert_eq!(human_bytes(u64::MAX), "16383 PiB");
        assert_eq!(human_duration(Duration::from_millis(40)), "40 ms");
        assert_eq!(human_duration(Duration::from_millis(1500)), "1.5 s");
        assert_eq!(human_duration(Duration::from_secs(95)), "95 s");
        assert_eq!(human_duration(Duration::from_secs(12_000)), "3 h 20 min");
        assert_eq!(human_duration(Duration::from_secs(187_200)), "2 d 4 h");
    }

    #[test]
    fn overflow_is_an_error() {
        assert!(parse_duration("99999999999999999999d").is_err());
        assert!(parse_bytes("99999999999TiB").is_err());
        assert!(parse_bytes("").is_err());
    }
}
