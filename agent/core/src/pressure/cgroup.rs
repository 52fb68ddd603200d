//! Readers of the memory controller's files, of both versions of cgroups.
//!
//! A cgroup's usage includes the page cache, so a cgroup that reads files sits at its limit in good health: what counts
//! is what cannot be given back.

/// Which memory controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `memory.limit_in_bytes` and its kin.
    V1,
    /// `memory.max` and its kin.
    V2,
}

/// One limit of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// The file: `memory.max`.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// Counters of what happened in a cgroup since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Times its processes were slowed down at `memory.high`.
    pub high: Option<u64>,
    /// Times it was about to go over its limit (`max`, or v1's `failcnt`).
    pub max: Option<u64>,
    /// Times it was out of memory.
    pub oom: Option<u64>,
    /// Processes of it that an OOM killer killed (Linux 4.13).
    pub oom_kill: Option<u64>,
    /// v1, with the killer switched off: its processes are stopped until there is memory.
    pub stopped: bool,
}

/// A limit file's content; `None` is no limit. Version 1 says "no limit" with a number near 2^63.
///
/// ```
/// use muster_agent_core::pressure::cgroup::limit_bytes;
/// assert_eq!(limit_bytes("3221225472\n"), Some(3 << 30));
/// assert_eq!(limit_bytes("max\n"), None);
/// assert_eq!(limit_bytes("9223372036854771712\n"), None);
/// ```
pub fn limit_bytes(text: &str) -> Option<u64> {
    const NO_LIMIT_BYTES: u64 = 1 << 62;
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT_BYTES)
}

/// `memory.events` of version 2, or `memory.oom_control` of version 1 with `memory.failcnt`.
pub fn counters(events: &str, failcnt: Option<&str>) -> Counters {
    let value = |key: &str| {
        let mut pairs = events.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(name, _)| *name == key)?.1.trim().parse::<u64>().ok()
    };
    Counters {
        high: value("high"),
        max: value("max").or_else(|| failcnt?.trim().parse().ok()),
        oom: value("oom"),
        oom_kill: value("oom_kill"),
        stopped: value("under_oom") == Some(1),
    }
}

/// What the kernel can take back without asking anybody, from `memory.stat`: file pages on the LRU lists (shared memory
/// is not on them), and slabs where version 2 tells.
pub fn reclaimable_bytes(stat: &str, version: Version) -> Option<u64> {
    let value = |key: &str| {
        let mut pairs = stat.lines().filter_map(|line| line.split_once(' '));
        pairs.find(|(name, _)| *name == key)?.1.trim().parse::<u64>().ok()
    };
    match version {
        Version::V2 => {
            let file = value("inactive_file")?.saturating_add(value("active_file")?);
            Some(file.saturating_add(value("slab_reclaimable").unwrap_or(0)))
        }
        // The `total_` lines include the cgroups below.
        Version::V1 => Some(value("total_inactive_file")?.saturating_add(value("total_active_file")?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_kernels() {
        // 4.19 has no oom_group_kill; 4.5 has no oom_kill.
        let v2_new = "low 0\nhigh 812\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\nsock_throttled 0\n";
        let v2_old = "low 0\nhigh 0\nmax 7\noom 0\n";
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v1_old = "oom_kill_disable 1\nunder_oom 1\n";
        let read = counters(v2_new, None);
        assert_eq!((read.high, read.max, read.oom, read.oom_kill), (Some(812), Some(5), Some(2), Some(1)));
        assert_eq!((counters(v2_old, None).oom_kill, counters(v2_old, None).max), (None, Some(7)));
        assert_eq!((counters(v1, Some("41\n")).max, counters(v1, Some("41\n")).oom_kill), (Some(41), Some(3)));
        assert!(counters(v1_old, None).stopped && !counters(v1, None).stopped);
        let stat2 = "anon 100\nfile 900\nshmem 200\ninactive_anon 1\nactive_anon 2\ninactive_file 400\nactive_file 300\n\
                     unevictable 0\nslab_reclaimable 50\nslab_unreclaimable 9\n";
        let stat1 =
            "cache 700\nrss 100\ninactive_file 1\nactive_file 2\ntotal_inactive_file 400\ntotal_active_file 300\n";
        assert_eq!(reclaimable_bytes(stat2, Version::V2), Some(750));
        assert_eq!(reclaimable_bytes(stat1, Version::V1), Some(700));
        assert_eq!(reclaimable_bytes(stat1, Version::V2), Some(3));
        assert_eq!(reclaimable_bytes("", Version::V2), None);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "([a-z_]{1,12} [0-9a-z]{0,22}\n){0,6}") {
            let _ = (counters(&text, Some(&text)), limit_bytes(&text), reclaimable_bytes(&text, Version::V2));
        }
    }
}
