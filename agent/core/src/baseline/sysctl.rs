//! Names of sysctls as paths below `/proc/sys`, and their values as people write them.

/// Longer names are none.
const NAME_BYTES_MAX: usize = 255;

/// The path below `/proc/sys`. As sysctl(8) has it, the first separator decides which one it is: in
/// `net/ipv4/conf/eth0.100/forwarding` the dot belongs to a name.
///
/// ```
/// use muster_agent_core::baseline::sysctl::path;
/// assert_eq!(path("vm.swappiness").as_deref(), Ok("vm/swappiness"));
/// assert_eq!(path("net.ipv4.conf.eth0/100.forwarding").as_deref(), Ok("net/ipv4/conf/eth0.100/forwarding"));
/// assert!(path("../../etc/shadow").is_err());
/// assert!(path("vm..swappiness").is_err());
/// ```
pub fn path(name: &str) -> Result<String, String> {
    let expected = || format!("expected a name such as \"vm.swappiness\", found {name:?}");
    let dots_first = name.find(['.', '/']).is_some_and(|at| name.as_bytes().get(at) == Some(&b'.'));
    let path: String = match dots_first {
        true => name
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        false => name.to_owned(),
    };
    let well_formed = |part: &str| {
        let plain = part.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:@".contains(c));
        plain && !part.is_empty() && part != "." && part != ".."
    };
    let is_well = path.contains('/') && path.len() <= NAME_BYTES_MAX && path.split('/').all(well_formed);
    if is_well { Ok(path) } else { Err(expected()) }
}

/// The value without the white space in which it came: the kernel puts tabs between several numbers.
///
/// ```
/// assert_eq!(muster_agent_core::baseline::sysctl::plain("4096\t131072\t6291456\n"), "4096 131072 6291456");
/// ```
pub fn plain(value: &str) -> String {
    value.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_name_leads_out(name in "[a-z./\\\\ \\PC]{0,24}") {
            if let Ok(path) = path(&name) {
                prop_assert!(!path.starts_with('/') && path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
            plain(&name);
        }
    }
}
