//! Every bound that both sides must agree on, in one place.
//!
//! Each has a reason and an overflow rule. What the agent makes itself is clipped to these bounds before it is
//! spooled; what arrives over the wire beyond them is refused with `INVALID_ARGUMENT` (never clipped: the sender is
//! wrong).

/// Bytes of a name (agent, coordinator, fleet, service). Names appear in certificates, keys and file names.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a subject: a path or an address. `PATH_MAX` is 4096, but nobody reads that in a page.
pub const SUBJECT_BYTES_MAX: usize = 512;
/// Bytes of a reason code or of a probe's name that the receiver does not know. Our own are half as long at most.
pub const CODE_BYTES_MAX: usize = 64;
/// Bytes of a one-sentence summary. PagerDuty refuses more than 1024 characters.
pub const SUMMARY_BYTES_MAX: usize = 900;
/// Evidence keys of one finding.
pub const EVIDENCE_KEYS_MAX: usize = 48;
/// Bytes of one evidence key.
pub const EVIDENCE_KEY_BYTES_MAX: usize = 64;
/// Bytes of one evidence text (a kernel line, a SQLite error).
pub const EVIDENCE_TEXT_BYTES_MAX: usize = 1024;
/// Next steps of one finding: more than a tired person follows.
pub const NEXT_STEPS_MAX: usize = 12;
/// Bytes of one next step.
pub const NEXT_STEP_BYTES_MAX: usize = 512;
/// Open conditions of one agent. The agent counts what it does not tell beyond it.
pub const OPEN_FINDINGS_PER_AGENT_MAX: usize = 1024;
/// Subjects (service, probe, subject) one agent watches; also the size of a resync.
pub const SUBJECTS_PER_AGENT_MAX: usize = 4096;
/// Labels of one agent.
pub const LABELS_MAX: usize = 32;
/// Bytes of one label's key or value.
pub const LABEL_BYTES_MAX: usize = 128;
/// Listening ports that an agent tells of itself: a silent host is asked for on these and no others.
pub const LISTENING_PORTS_MAX: usize = 8;
/// Entries in one batch of findings, so that a heartbeat is never behind more than this.
pub const BATCH_ENTRIES_MAX: usize = 64;
/// Bytes of one encoded spool entry body.
pub const ENTRY_BODY_BYTES_MAX: usize = 64 * 1024;
/// Bytes of one message on the agent link, either way.
pub const LINK_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of an encoded heartbeat (asserted by a test on the largest possible one).
pub const HEARTBEAT_BYTES_MAX: usize = 128;
/// Bytes of an operator's note or reason.
pub const NOTE_BYTES_MAX: usize = 2048;
/// Items of one page of a list, whatever was asked.
pub const LIST_PAGE_SIZE_MAX: usize = 1000;
/// Items of one page of a list when nothing was asked.
pub const LIST_PAGE_SIZE_DEFAULT: usize = 100;

/// Cuts `text` to at most `bytes_max` bytes at a character boundary and marks the cut with `…`.
///
/// ```
/// use muster_common::limits::clip;
/// assert_eq!(clip("short", 10), "short");
/// assert_eq!(clip("ärger im keller", 8), "ärge…");
/// ```
pub fn clip(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mark = '…';
    let mut end = bytes_max.saturating_sub(mark.len_utf8());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut cut = text[..end].to_owned();
    if bytes_max >= mark.len_utf8() {
        cut.push(mark);
    }
    cut
}
