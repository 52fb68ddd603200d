//! The pager's workers, on a journal in memory: against a scripted receiver on a clock that the test drives, and over
//! real HTTP.

#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod alertmanager;
mod http;
mod mail;
mod people;
mod scripted;
mod secrets;
mod service;
mod strict;
mod wire;

use muster_common::evidence::Grade;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_common::time::Timestamp;
use muster_coordinator::pager::{Of, Outbox, OutboxError, Outcome, Pending, Standing};
use muster_coordinator_core::page::{Page, PageAction, PageId};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A journal in memory with the outbox's rules.
#[derive(Default)]
struct Journal {
    pages: Mutex<BTreeMap<PageId, (Pending, Option<Outcome>)>>,
    primary: AtomicBool,
    /// Who was told to fail, and for how long.
    failing: Mutex<Vec<(String, Duration)>>,
    /// What stands at a receiver.
    standing: Mutex<Vec<Standing>>,
    /// Outcomes cannot be journaled (the process dies between the call and its outcome).
    dead: AtomicBool,
}

impl Journal {
    fn request(&self, id: u64, page: Page) {
        let pending = Pending::new(PageId(id), page);
        self.pages.lock().unwrap().insert(PageId(id), (pending, None));
    }

    fn outcome(&self, id: u64) -> Option<Outcome> {
        self.pages.lock().unwrap()[&PageId(id)].1.clone()
    }
}

impl Outbox for Journal {
    fn may_page(&self) -> bool {
        self.primary.load(Ordering::SeqCst)
    }

    async fn pending(&self, of: Of<'_>, limit: usize) -> Result<Vec<Pending>, OutboxError> {
        let pages = self.pages.lock().unwrap();
        let open = pages.values().filter(|(pending, outcome)| outcome.is_none() && of.matches(&pending.page.receiver));
        Ok(open.take(limit).map(|(pending, _)| pending.clone()).collect())
    }

    async fn attempted(&self, page: PageId) -> Result<bool, OutboxError> {
        let mut pages = self.pages.lock().unwrap();
        let Some((pending, None)) = pages.get_mut(&page) else { return Ok(false) };
        pending.attempted = true;
        Ok(true)
    }

    async fn concluded(&self, page: PageId, outcome: Outcome) -> Result<(), OutboxError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(OutboxError("the process died".to_owned()));
        }
        self.pages.lock().unwrap().get_mut(&page).unwrap().1 = Some(outcome);
        Ok(())
    }

    async fn failing(&self, receiver: &str, length: Duration, _: String) -> Result<(), OutboxError> {
        self.failing.lock().unwrap().push((receiver.to_owned(), length));
        Ok(())
    }

    async fn standing(&self, _: &str, after: &str, limit: usize) -> Result<Vec<Standing>, OutboxError> {
        let standing = self.standing.lock().unwrap();
        let later = standing.iter().filter(|one| one.page.dedup_key.as_str() > after);
        Ok(later.take(limit).cloned().collect())
    }
}

fn primary() -> Arc<Journal> {
    let journal = Journal::default();
    journal.primary.store(true, Ordering::SeqCst);
    Arc::new(journal)
}

fn page(receiver: &str, key: &str, action: PageAction) -> Page {
    Page {
        receiver: receiver.to_owned(),
        action,
        dedup_key: key.to_owned(),
        incident: "INC-20261121-0001".to_owned(),
        cause_key: "host/web-1/service/spl".to_owned(),
        severity: Severity::Sev2,
        reason: Reason::ProcessDown,
        grade: Grade::Confirmed,
        title: "spl on web-1 is down".to_owned(),
        why: "process_down".to_owned(),
        details: Vec::new(),
        next_steps: Vec::new(),
        agents: vec!["web-1".to_owned()],
        n_agents: 1,
        services: vec!["spl".to_owned()],
        began: Timestamp::UNIX_EPOCH,
        requested: Timestamp::UNIX_EPOCH,
        late_by_ms: None,
    }
}
