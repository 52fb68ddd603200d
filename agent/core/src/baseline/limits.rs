//! `/proc/PID/limits`: what a process may use, soft and hard.

/// As setrlimit(2) knows it, and the kernel's words for it.
const LIMITS: [(&str, &str); 16] = [
    ("cpu", "Max cpu time"),
    ("fsize", "Max file size"),
    ("data", "Max data size"),
    ("stack", "Max stack size"),
    ("core", "Max core file size"),
    ("rss", "Max resident set"),
    ("nproc", "Max processes"),
    ("nofile", "Max open files"),
    ("memlock", "Max locked memory"),
    ("as", "Max address space"),
    ("locks", "Max file locks"),
    ("sigpending", "Max pending signals"),
    ("msgqueue", "Max msgqueue size"),
    ("nice", "Max nice priority"),
    ("rtprio", "Max realtime priority"),
    ("rttime", "Max realtime timeout"),
];

/// The names that may be declared.
pub fn names() -> impl Iterator<Item = &'static str> {
    LIMITS.iter().map(|(name, _)| *name)
}

/// Soft and hard limit, as the kernel writes them.
///
/// ```
/// let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
///             Max open files            1024                 524288               files     \n";
/// assert_eq!(muster_agent_core::baseline::limits::find(text, "nofile"), Some(("1024", "524288")));
/// ```
pub fn find<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (_, label) = LIMITS.iter().find(|(known, _)| *known == name)?;
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    let mut words = rest.split_ascii_whitespace();
    Some((words.next()?, words.next()?))
}

/// What is declared: `"65536"` or `"unlimited"` of the soft limit, `"1024:65536"` of both.
///
/// ```
/// use muster_agent_core::baseline::limits::requested;
/// assert_eq!(requested("65536"), Ok("65536".to_owned()));
/// assert_eq!(requested("1024:unlimited"), Ok("1024:unlimited".to_owned()));
/// assert!(requested("64k").is_err());
/// ```
pub fn requested(text: &str) -> Result<String, String> {
    let one = |part: &str| part == "unlimited" || part.parse::<u64>().is_ok();
    let well = match text.split_once(':') {
        Some((soft, hard)) => one(soft) && one(hard),
        None => one(text),
    };
    let expected = || format!("expected \"65536\", \"unlimited\" or soft and hard as \"1024:65536\", found {text:?}");
    if well { Ok(text.to_owned()) } else { Err(expected()) }
}

/// The applied limit in the form of the declared one.
pub fn applied(text: &str, name: &str, requested: &str) -> Option<String> {
    let (soft, hard) = find(text, name)?;
    Some(if requested.contains(':') { format!("{soft}:{hard}") } else { soft.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_is_found() {
        let text = LIMITS.map(|(_, label)| format!("{label:<25} 1 2 units\n")).concat();
        for name in names() {
            assert_eq!(find(&text, name), Some(("1", "2")), "{name}");
        }
        assert_eq!(find(&text, "nofiles"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in "(Max open files)?[ 0-9a-z\n]{0,40}") {
            find(&text, "nofile");
            applied(&text, "nofile", &text);
            let _either = requested(&text);
        }
    }
}
