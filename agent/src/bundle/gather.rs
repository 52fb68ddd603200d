//! What a bundle collects, bounded in bytes and in time.

use super::{ItemNote, Missing};
use muster_agent_core::bundle::archive::{FILES_MAX, is_name};
use muster_agent_core::bundle::clean_text;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Bytes of all items: enough for every text below at its own bound, small enough to mail.
pub(super) const TOTAL_BYTES_MAX: usize = 16 << 20;
/// Bytes of one item, the report left out.
pub(super) const ITEM_BYTES_MAX: usize = 1 << 20;
/// The report of a host with thousands of subjects.
const REPORT_BYTES_MAX: usize = 6 << 20;
/// A source has this long; what comes later is left out.
pub(super) const SOURCE_DEADLINE: Duration = Duration::from_secs(5);
/// Notes of what is missing.
const MISSING_MAX: usize = 1024;

/// One file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
    pub(super) cut: Option<String>,
}

impl Item {
    pub(super) fn note(&self) -> ItemNote {
        let bytes = u64::try_from(self.content.len()).unwrap_or(u64::MAX);
        ItemNote { name: self.name.clone(), bytes, cut: self.cut.clone() }
    }
}

/// What one source brings: text, and what of it was left out before; or why there is none.
pub(super) type Text = Result<(String, Option<String>), String>;

/// The items so far.
#[derive(Debug, Default)]
pub(super) struct Gathering {
    pub(super) items: Vec<Item>,
    pub(super) missing: Vec<Missing>,
    total: usize,
}

impl Gathering {
    /// Runs a source beside, and takes what it brings in time. Secrets go here, so that no source can forget it.
    pub(super) fn source(&mut self, work: impl FnOnce() -> Vec<(String, Text)> + Send + 'static, what: &str) {
        let (sender, brought) = channel();
        let run = move || {
            let clean = |(name, text): (String, Text)| (name, text.map(|(text, cut)| (clean_text(&text), cut)));
            // Nobody waits any more where it took too long.
            let _late = sender.send(work().into_iter().map(clean).collect::<Vec<_>>());
        };
        let started = std::thread::Builder::new().name("bundle".to_owned()).spawn(run);
        match started.map(|_| brought.recv_timeout(SOURCE_DEADLINE)) {
            Ok(Ok(brought)) => self.take_in(brought),
            Ok(Err(_)) => self.miss(what.to_owned(), format!("no answer within {} s", SOURCE_DEADLINE.as_secs())),
            Err(error) => self.miss(what.to_owned(), error.to_string()),
        }
    }

    fn take_in(&mut self, brought: Vec<(String, Text)>) {
        for (name, text) in brought {
            match text {
                Ok((text, cut)) => self.put_text(name, text, cut),
                Err(why) => self.miss(name, why),
            }
        }
    }

    /// The newest lines of a clean text.
    fn put_text(&mut self, name: String, text: String, cut: Option<String>) {
        let Some(beyond) = text.len().checked_sub(ITEM_BYTES_MAX).filter(|beyond| *beyond > 0) else {
            return self.put(name, text.into_bytes(), cut);
        };
        let kept = text.as_bytes().get(beyond..).unwrap_or_default();
        let line = kept.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let kept = kept.get(line..).unwrap_or_default().to_vec();
        self.put(name, kept, Some(cut.unwrap_or_else(|| format!("only the last {ITEM_BYTES_MAX} bytes"))));
    }

    /// Something that is useless in part.
    pub(super) fn put_whole(&mut self, name: &str, content: Vec<u8>) {
        if content.len() > REPORT_BYTES_MAX {
            self.miss(name.to_owned(), format!("more than {REPORT_BYTES_MAX} bytes"));
        } else {
            self.put(name.to_owned(), content, None);
        }
    }

    fn put(&mut self, name: String, content: Vec<u8>, cut: Option<String>) {
        if self.total + content.len() > TOTAL_BYTES_MAX || self.items.len() + 1 >= FILES_MAX {
            return self.miss(name, "the bundle is full".to_owned());
        }
        if !is_name(&name) || self.items.iter().any(|item| item.name == name) {
            return self.miss(name, "it has no usable name".to_owned());
        }
        self.total += content.len();
        self.items.push(Item { name, content, cut });
    }

    pub(super) fn miss(&mut self, name: String, why: String) {
        if self.missing.len() < MISSING_MAX {
            self.missing.push(Missing { name: clean_words(&name), why: clean_words(&why) });
        }
    }
}

fn clean_words(text: &str) -> String {
    clean_text(text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Text {
        Ok((text.to_owned(), None))
    }

    #[test]
    fn secrets_go_and_a_source_that_hangs_is_left_out() {
        let mut gathering = Gathering::default();
        let (keep, hang) = channel::<()>();
        gathering.source(move || hang.recv().map(|()| Vec::new()).unwrap_or_default(), "slow");
        drop(keep);
        gathering.source(|| vec![("a.log".to_owned(), text("token=abc\n")), ("b".to_owned(), Err("x".into()))], "a");
        assert_eq!(gathering.items, [Item { name: "a.log".into(), content: b"token=***\n".to_vec(), cut: None }]);
        let missing: Vec<_> = gathering.missing.iter().map(|missing| (&*missing.name, &*missing.why)).collect();
        assert_eq!(missing, [("slow", "no answer within 5 s"), ("b", "x")]);
    }

    #[test]
    fn what_is_too_much_is_cut_or_left_out() {
        let mut gathering = Gathering::default();
        let long = "0123456789\n".repeat(ITEM_BYTES_MAX / 8);
        for at in 0..20 {
            gathering.take_in(vec![(format!("{at}.log"), text(&long))]);
        }
        assert!(gathering.items.iter().map(|item| item.content.len()).sum::<usize>() <= TOTAL_BYTES_MAX);
        assert!(gathering.items.iter().all(|item| item.cut.is_some() && item.content.starts_with(b"0123456789\n")));
        assert!(gathering.missing.iter().any(|missing| missing.why == "the bundle is full"));
    }
}
