//! Properties of a systemd unit: as declared, and as they come over the bus, in one form that can be compared.

use crate::unit::Property;
use muster_common::units::{human_bytes, parse_bytes, parse_duration};

/// Longer names and values are none that a person declares.
const TEXT_BYTES_MAX: usize = 255;

/// What is declared: a size or a duration is compared as systemd counts it, in bytes and microseconds.
///
/// ```
/// use muster_agent_core::baseline::unit_property::requested;
/// assert_eq!(requested("Restart", "on-failure").as_deref(), Ok("on-failure"));
/// assert_eq!(requested("MemoryMax", "3GiB").as_deref(), Ok("3221225472 (3 GiB)"));
/// assert_eq!(requested("RestartUSec", "2s").as_deref(), Ok("2000000"));
/// assert!(requested("memory max", "1").is_err());
/// ```
pub fn requested(name: &str, value: &str) -> Result<String, String> {
    check_name(name)?;
    if value.is_empty() || value.len() > TEXT_BYTES_MAX {
        return Err(format!("expected a value of at most {TEXT_BYTES_MAX} bytes, as systemctl show prints it"));
    }
    if name.ends_with("USec")
        && let Ok(length) = parse_duration(value)
    {
        return Ok(length.as_micros().to_string());
    }
    match parse_bytes(value) {
        Ok(bytes) => Ok(shown_bytes(bytes)),
        Err(_) => Ok(value.to_owned()),
    }
}

/// Whether a property could have this name.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric()) && name.starts_with(|c: char| c.is_ascii_uppercase());
    if is_name && name.len() <= TEXT_BYTES_MAX {
        return Ok(());
    }
    Err("expected the name of a property as systemctl show prints it, such as \"MemoryMax\"".to_owned())
}

/// What is applied, in the form of what is requested.
///
/// ```
/// use muster_agent_core::baseline::unit_property::{applied, requested};
/// use muster_agent_core::unit::Property;
/// let wanted = requested("MemoryMax", "3GiB").unwrap();
/// assert_eq!(applied(&Property::Number(3 << 30), &wanted), wanted);
/// assert_eq!(applied(&Property::Number(u64::MAX), &wanted), "infinity");
/// assert_eq!(applied(&Property::Flag(true), "yes"), "yes");
/// ```
pub fn applied(property: &Property, requested: &str) -> String {
    match property {
        Property::Number(bytes) if *bytes < u64::MAX && requested.ends_with(')') => shown_bytes(*bytes),
        other => other.to_string(),
    }
}

fn shown_bytes(bytes: u64) -> String {
    format!("{bytes} ({})", human_bytes(bytes))
}
