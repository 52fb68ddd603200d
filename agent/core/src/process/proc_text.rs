//! Readers of the texts that procfs gives about one process: `status`, `limits`, `stat`, `children`.
//!
//! Lines come and go with kernels: what is not there is `None`, never an error and never a zero.

use muster_common::ids::ProcessId;

/// What `/proc/PID/status` says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// All resident memory: `VmRSS`. A zombie and a kernel thread have none.
    pub rss_bytes: Option<u64>,
    /// Of it, what no file stands behind: `RssAnon` (Linux 4.5).
    pub anon_bytes: Option<u64>,
    /// What was moved to swap: `VmSwap` (Linux 2.6.34).
    pub swap_bytes: Option<u64>,
    /// The address space: `VmSize`.
    pub virtual_bytes: Option<u64>,
    /// Threads.
    pub threads: Option<u64>,
    /// `R`, `S`, `T`, …
    pub state: Option<char>,
    /// Who debugs it.
    pub tracer_pid: Option<u32>,
    /// Times it gave up the processor by itself (it waited for something).
    pub voluntary_switches: Option<u64>,
    /// Times the processor was taken from it.
    pub involuntary_switches: Option<u64>,
}

impl Status {
    /// `T` or `t`, where a signal or a debugger stopped it.
    pub fn halted(&self) -> Option<char> {
        self.state.filter(|state| matches!(state, 'T' | 't'))
    }

    /// How often it gave up the processor or lost it: the same number later is a process that has not run.
    pub fn switches(&self) -> u64 {
        self.voluntary_switches.unwrap_or(0).saturating_add(self.involuntary_switches.unwrap_or(0))
    }

    /// What the process itself holds and nobody else can give back: anonymous memory, resident or in swap. Files mapped
    /// by it come and go with the page cache.
    pub fn own_bytes(&self) -> Option<u64> {
        Some(self.anon_bytes.or(self.rss_bytes)?.saturating_add(self.swap_bytes.unwrap_or(0)))
    }

    /// The same process later: its memory as `/proc/PID/statm` has it, in pages. `None` where that says nothing (a zombie),
    /// or where the earlier look did not tell anonymous memory, so that the two could not be compared; and while some of it
    /// is in swap, of which `statm` knows nothing.
    ///
    /// ```
    /// use muster_agent_core::process::proc_text::status;
    /// let before = status("VmSize:\t 40 kB\nVmRSS:\t 24 kB\nRssAnon:\t 8 kB\nVmSwap:\t 0 kB\nThreads:\t4\n");
    /// let later = before.with_memory("20 8 5 1 0 7 0\n", 4096).unwrap();
    /// assert_eq!((later.rss_bytes, later.anon_bytes, later.threads), (Some(8 << 12), Some(3 << 12), Some(4)));
    /// ```
    pub fn with_memory(self, statm: &str, page_bytes: u64) -> Option<Self> {
        self.anon_bytes?;
        self.swap_bytes.filter(|bytes| *bytes == 0)?;
        let mut fields = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().ok()?.checked_mul(page_bytes));
        let (size, resident, of_files) = (fields.next()??, fields.next()??, fields.next()??);
        let resident = (resident > 0).then_some(resident)?;
        let anon = resident.checked_sub(of_files)?;
        Some(Self { virtual_bytes: Some(size), rss_bytes: Some(resident), anon_bytes: Some(anon), ..self })
    }
}

/// Reads `/proc/PID/status`.
///
/// ```
/// use muster_agent_core::process::proc_text::status;
/// let read = status("Name:\tspl\nVmRSS:\t    3928 kB\nThreads:\t4\n");
/// assert_eq!((read.rss_bytes, read.threads, read.anon_bytes), (Some(3928 << 10), Some(4), None));
/// ```
pub fn status(text: &str) -> Status {
    let mut status = Status::default();
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let number = || value.split_whitespace().next()?.parse::<u64>().ok();
        let bytes = || number()?.checked_mul(1024);
        match key {
            "VmRSS" => status.rss_bytes = bytes(),
            "RssAnon" => status.anon_bytes = bytes(),
            "VmSwap" => status.swap_bytes = bytes(),
            "VmSize" => status.virtual_bytes = bytes(),
            "State" => status.state = value.trim_start().chars().next(),
            "TracerPid" => status.tracer_pid = number().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
            "Threads" => status.threads = number(),
            "voluntary_ctxt_switches" => status.voluntary_switches = number(),
            "nonvoluntary_ctxt_switches" => status.involuntary_switches = number(),
            _ => {}
        }
    }
    status
}

/// Soft limits; `None` is unlimited, or a line that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// `RLIMIT_NOFILE`.
    pub open_files: Option<u64>,
    /// The hard limit of it.
    pub open_files_hard: Option<u64>,
    /// `RLIMIT_AS`.
    pub address_space_bytes: Option<u64>,
}

/// Reads `/proc/PID/limits`.
pub fn limits(text: &str) -> Limits {
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let column = |name, index| line(name)?.split_whitespace().nth(index)?.parse::<u64>().ok();
    Limits {
        open_files: column("Max open files", 0),
        open_files_hard: column("Max open files", 1),
        address_space_bytes: column("Max address space", 0),
    }
}

/// Name, state and identity from `/proc/PID/stat`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its name.
    pub comm: String,
    /// `R`, `S`, `Z` …
    pub state: char,
    /// Which process.
    pub process: ProcessId,
    /// Its parent's pid; 0 is outside of this pid namespace.
    pub parent: u32,
    /// It is a thread of the kernel.
    pub kernel: bool,
    /// How many threads it has.
    pub threads: u64,
}

/// `PF_KTHREAD` among the flags of a process, since Linux 2.6.27.
const PF_KTHREAD: u32 = 0x0020_0000;

/// Reads `/proc/PID/stat`. The name may hold spaces and parentheses: the last `)` ends it.
///
/// ```
/// use muster_agent_core::process::proc_text::stat;
/// let text = "7 (a (b) c) Z 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1241436 0 0";
/// let read = stat(text).unwrap();
/// assert_eq!((read.comm.as_str(), read.state, read.process.start_ticks), ("a (b) c", 'Z', 1241436));
/// assert_eq!((read.parent, read.threads, read.kernel), (1, 1, false));
/// let text = "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 10 0 0 20 0 1 0 30 0 0";
/// assert!(stat(text).unwrap().kernel);
/// ```
pub fn stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let (pid, comm) = head.split_once('(')?;
    let mut fields = tail.split_whitespace();
    // Field 3, and those after it: 4, 9, 20, 22.
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let flags = fields.nth(4)?.parse::<u32>().ok()?;
    let threads = fields.nth(10)?.parse().ok()?;
    let start_ticks = fields.nth(1)?.parse().ok()?;
    let pid = pid.trim().parse().ok()?;
    let (comm, process, kernel) = (comm.to_owned(), ProcessId { pid, start_ticks }, flags & PF_KTHREAD != 0);
    Some(Stat { comm, state, process, parent, kernel, threads })
}

/// Reads `/proc/PID/task/TID/children`.
pub fn children(text: &str) -> impl Iterator<Item = u32> + '_ {
    text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_kernels_are_read() {
        // 3.10 has neither RssAnon nor much else; 2.6.32 has no VmSwap; a zombie has no Vm lines at all.
        let old = "Name:\tsshd\nState:\tS (sleeping)\nTgid:\t1021\nVmPeak:\t   66240 kB\nVmSize:\t   66236 kB\n\
                   VmRSS:\t    1204 kB\nThreads:\t1\nvoluntary_ctxt_switches:\t76\nnonvoluntary_ctxt_switches:\t7\n";
        let new = "Name:\thub\nUmask:\t0022\nState:\tS (sleeping)\nVmSize:\t  904112 kB\nVmRSS:\t  310220 kB\n\
                   RssAnon:\t  290000 kB\nRssFile:\t   20220 kB\nRssShmem:\t       0 kB\nVmSwap:\t   10000 kB\n\
                   THP_enabled:\t1\nThreads:\t12\nvoluntary_ctxt_switches:\t9\nnonvoluntary_ctxt_switches:\t3\n";
        let zombie = "Name:\tsh\nState:\tZ (zombie)\nThreads:\t1\n";
        assert_eq!(status(old).own_bytes(), Some(1204 << 10));
        assert_eq!(status(old).involuntary_switches, Some(7));
        assert_eq!(status(new).own_bytes(), Some(300_000 << 10));
        assert_eq!(status(new).threads, Some(12));
        assert_eq!(status(zombie).own_bytes(), None);
        let table = "Limit                     Soft Limit           Hard Limit           Units     \n\
                     Max open files            1024                 524288               files     \n\
                     Max address space         unlimited            unlimited            bytes     \n";
        let read = limits(table);
        assert_eq!(
            (read.open_files, read.open_files_hard, read.address_space_bytes),
            (Some(1024), Some(524_288), None)
        );
        assert_eq!(limits("").open_files, None);
        assert_eq!(children("12 13  x 14 ").collect::<Vec<_>>(), [12, 13, 14]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400), text in "[0-9]{1,3} \\([a-z) (]{0,9}\\) [A-Z]( [0-9-]{0,22}){0,24}") {
            for text in [String::from_utf8_lossy(&bytes).into_owned(), text] {
                let _ = (status(&text).own_bytes(), limits(&text), stat(&text), children(&text).count());
            }
        }
    }
}
