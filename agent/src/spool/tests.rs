//! The spool's promises, on real files.

use super::*;
use muster_common::finding::{Finding, FindingKey, ProbeKind, SubjectKey};
use muster_common::ids::{CoordinatorId, ServiceName};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use uuid::Uuid;

const NOW: Now = Now { boottime_ms: 1_000_000, wall: Timestamp::from_unix_ms(1_795_225_445_678) };

fn later(seconds: u64) -> Now {
    Now { boottime_ms: NOW.boottime_ms + seconds * 1000, wall: NOW.wall + Duration::from_secs(seconds) }
}

fn boot(n: u8) -> BootId {
    BootId(Uuid::from_bytes([n; 16]))
}

fn event(n: usize) -> Append {
    let subject = SubjectKey::new(ServiceName::host(), ProbeKind::Port, &format!("127.0.0.1:{n}"));
    let finding = Finding::new(FindingKey { subject, reason: Reason::PortClosed }, "nothing listens");
    Append { event: FindingEvent::Opened(finding), observed_boottime_ms: NOW.boottime_ms }
}

fn events(count: usize) -> Vec<Append> {
    (0..count).map(event).collect()
}

fn open(folder: &tempfile::TempDir) -> Spool {
    open_with(folder, SpoolLimits::default(), boot(1))
}

fn open_with(folder: &tempfile::TempDir, limits: SpoolLimits, boot: BootId) -> Spool {
    Spool::open(&folder.path().join("spool.db"), limits, boot, NOW).unwrap()
}

fn sequences(spool: &Spool) -> Vec<u64> {
    spool.read(0, u64::MAX, usize::MAX, usize::MAX).unwrap().iter().map(|entry| entry.sequence).collect()
}

#[test]
fn what_is_appended_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    let first = spool.append(&events(3), &[("ledger", b"x")], NOW).unwrap();
    assert_eq!(first.sequence, 3);
    drop(spool);
    let mut spool = open(&folder);
    assert_eq!(spool.loss(), None);
    assert_eq!(spool.position(), first);
    assert_eq!(spool.get_state("ledger").unwrap().as_deref(), Some(&b"x"[..]));
    assert_eq!(spool.get_state("other").unwrap(), None);
    spool.append(&events(1), &[], NOW).unwrap();
    assert_eq!(sequences(&spool), [1, 2, 3, 4]);
    let body = &spool.read(3, 4, 1, 1).unwrap()[0].body;
    assert_eq!(muster_proto::convert::finding_event(body).unwrap(), event(0).event);
}

#[test]
fn reads_are_bounded_by_entries_and_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.append(&events(10), &[], NOW).unwrap();
    assert_eq!(spool.read(2, 8, 3, usize::MAX).unwrap().len(), 3);
    assert_eq!(spool.read(2, 8, 100, usize::MAX).unwrap().len(), 6);
    assert_eq!(spool.read(2, 8, 100, 1).unwrap().len(), 1, "one entry always goes");
}

#[test]
fn only_what_is_replicated_and_kept_long_enough_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { keep_acked: Duration::from_secs(60), ..SpoolLimits::default() };
    let mut spool = open_with(&folder, limits, boot(1));
    spool.append(&events(6), &[], NOW).unwrap();
    let id = spool.view().spool;
    spool.ack(id, 4, 2, NOW).unwrap();
    assert_eq!(sequences(&spool), [1, 2, 3, 4, 5, 6]);
    spool.ack(id, 4, 2, later(59)).unwrap();
    assert_eq!(sequences(&spool), [1, 2, 3, 4, 5, 6]);
    spool.ack(id, 4, 3, later(61)).unwrap();
    assert_eq!(sequences(&spool), [3, 4, 5, 6]);
    // A regression, another spool, and more than there is.
    spool.ack(id, 1, 1, later(61)).unwrap();
    spool.ack(SpoolId(Uuid::from_bytes([9; 16])), 6, 6, later(61)).unwrap();
    assert_eq!((spool.view().stored, sequences(&spool)), (4, vec![3, 4, 5, 6]));
    spool.ack(id, 99, 99, later(200)).unwrap();
    assert_eq!((spool.view().stored, spool.view().oldest), (6, 4));
    spool.ack(id, 99, 99, later(300)).unwrap();
    assert_eq!((spool.view().oldest, sequences(&spool)), (7, vec![]));
    let position = spool.append(&events(1), &[], later(300)).unwrap();
    assert_eq!(position.sequence, 7);
    drop(spool);
    assert_eq!(open(&folder).loss(), None, "a chain whose beginning is gone is whole");
}

#[test]
fn a_reboot_starts_the_keeping_time_anew() {
    let folder = tempfile::tempdir().unwrap();
    let limits = SpoolLimits { keep_acked: Duration::from_secs(60), ..SpoolLimits::default() };
    let mut spool = open_with(&folder, limits, boot(1));
    spool.append(&events(2), &[], NOW).unwrap();
    let id = spool.view().spool;
    spool.ack(id, 2, 1, NOW).unwrap();
    drop(spool);
    let mut spool = open_with(&folder, limits, boot(2));
    let after_boot = |seconds: u64| Now { boottime_ms: seconds * 1000, wall: NOW.wall };
    spool.ack(id, 2, 2, after_boot(59)).unwrap();
    assert_eq!(sequences(&spool), [1, 2]);
    spool.ack(id, 2, 2, after_boot(60)).unwrap();
    assert_eq!(sequences(&spool), [2]);
    let entry = &spool.read(1, 2, 1, 1).unwrap()[0];
    assert!(entry.written.age(after_boot(60), boot(2)).estimated);
}

#[test]
fn beyond_its_bound_the_oldest_go_and_the_unacknowledged_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open_with(&folder, SpoolLimits { max_bytes: 0, ..SpoolLimits::default() }, boot(1));
    spool.append(&events(100), &[], NOW).unwrap();
    let id = spool.view().spool;
    spool.ack(id, 40, 0, NOW).unwrap();
    while spool.view().oldest <= 60 {
        spool.append(&events(100), &[], NOW).unwrap();
    }
    let view = spool.view();
    assert_eq!(view.evicted, view.oldest - 1 - 40);
    assert!(spool.bytes <= MAX_BYTES_MIN);
    drop(spool);
    let spool = open(&folder);
    assert_eq!((spool.loss(), spool.view()), (None, view));
}

#[test]
fn a_reverted_spool_is_noticed_and_goes_on_under_a_new_id() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    spool.append(&events(3), &[], NOW).unwrap();
    drop(spool);
    let image = std::fs::read(folder.path().join("spool.db")).unwrap();
    let mut spool = open(&folder);
    let known = spool.append(&events(1), &[], NOW).unwrap();
    let id = known.spool;
    drop(spool);
    for companion in ["spool.db-wal", "spool.db-shm"] {
        std::fs::remove_file(folder.path().join(companion)).ok();
    }
    std::fs::write(folder.path().join("spool.db"), image).unwrap();

    let mut spool = open(&folder);
    assert_eq!(spool.compare(known).unwrap(), Comparison::Different, "beyond the head");
    spool.append(&[event(77), event(78)], &[], NOW).unwrap();
    assert_eq!(spool.compare(known).unwrap(), Comparison::Different, "the same number, another entry");
    let first = spool.read(0, 1, 1, 1).unwrap()[0].hash;
    assert_eq!(spool.compare(Position { spool: id, sequence: 1, hash: first }).unwrap(), Comparison::Same);
    assert_eq!(spool.compare(Position { sequence: 2, hash: EntryHash::ZERO, ..known }).unwrap(), Comparison::Unknown);

    spool.ack(id, 3, 2, NOW).unwrap();
    let view = spool.restart().unwrap();
    assert_ne!(view.spool, id);
    assert_eq!((view.head, sequences(&spool)), (3, vec![1, 2, 3]));
    let bodies: Vec<_> = spool.read(0, 9, 9, usize::MAX).unwrap().into_iter().map(|entry| entry.body).collect();
    let expected = [event(2), event(77), event(78)].map(|append| encode(&append.event).unwrap());
    assert_eq!(bodies, expected);
    drop(spool);
    assert_eq!(open(&folder).loss(), None);
}

#[test]
fn from_memory_to_a_file_goes_what_is_not_replicated_and_the_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let epoch = Epoch { number: 5, coordinator: CoordinatorId::new("a").unwrap() };
    let mut file = open(&folder);
    file.append(&events(2), &[("k", b"old")], NOW).unwrap();
    let id = file.view().spool;
    let mut spool = Spool::open_in_memory(&folder.path().join("none.db"), SpoolLimits::default(), boot(1)).unwrap();
    spool.append(&[event(7), event(8)], &[("k", b"new")], NOW).unwrap();
    spool.ack(spool.view().spool, 1, 1, NOW).unwrap();
    spool.store_epoch(&epoch, b"p").unwrap();
    spool.move_to(file).unwrap();
    drop(spool);
    let spool = open(&folder);
    assert_eq!((spool.loss(), spool.view().spool, sequences(&spool)), (None, id, vec![1, 2, 3]));
    assert_eq!(spool.read(2, 3, 1, 1).unwrap()[0].body, encode(&event(8).event).unwrap());
    assert_eq!(spool.highest_epoch().unwrap(), Some((epoch, b"p".to_vec())));
    assert_eq!(spool.get_state("k").unwrap(), None, "the agent writes it again, all of it");
}

#[test]
fn the_highest_epoch_only_rises() {
    let folder = tempfile::tempdir().unwrap();
    let epoch = |number, id: &str| Epoch { number, coordinator: CoordinatorId::new(id).unwrap() };
    let mut spool = open(&folder);
    assert_eq!(spool.highest_epoch().unwrap(), None);
    spool.store_epoch(&epoch(u64::MAX - 1, "b"), b"proof").unwrap();
    for lower in [epoch(1, "z"), epoch(u64::MAX - 1, "a")] {
        assert!(matches!(spool.store_epoch(&lower, b""), Err(SpoolError::EpochLower { .. })));
    }
    drop(spool);
    let mut spool = open(&folder);
    assert_eq!(spool.highest_epoch().unwrap(), Some((epoch(u64::MAX - 1, "b"), b"proof".to_vec())));
    spool.store_epoch(&epoch(u64::MAX, "a"), b"").unwrap();
}

#[test]
fn a_damaged_file_is_moved_aside_and_the_epoch_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let epoch = Epoch { number: 5, coordinator: CoordinatorId::new("a").unwrap() };
    let mut spool = open(&folder);
    spool.append(&events(50), &[], NOW).unwrap();
    spool.store_epoch(&epoch, b"p").unwrap();
    let id = spool.view().spool;
    drop(spool);
    // One byte in the body of one entry: to SQLite all is well.
    let flip = "UPDATE entries SET body = unhex(replace(hex(body), '3A3137', '3A3138')) WHERE sequence = 18";
    assert_eq!(Connection::open(&path).unwrap().execute(flip, []).unwrap(), 1);
    let spool = open(&folder);
    let loss = spool.loss().expect("noticed").clone();
    assert!(loss.why.contains("hash chain breaks at entry 18"), "{}", loss.why);
    assert!(loss.moved_to.exists());
    assert_ne!(spool.view().spool, id);
    assert_eq!(spool.highest_epoch().unwrap(), Some((epoch, b"p".to_vec())));
    drop(spool);
    std::fs::write(&path, b"this is not a database, and long enough to be looked at").unwrap();
    let spool = open(&folder);
    assert!(spool.loss().is_some());
    assert_eq!(spool.highest_epoch().unwrap(), None);
}

#[test]
fn damage_found_at_work_begins_a_new_spool() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool.db");
    let mut spool = open(&folder);
    spool.append(&events(400), &[], NOW).unwrap();
    let id = spool.view().spool;
    drop(spool);
    let mut spool = open(&folder);
    assert!(!spool.heal(NOW).unwrap());
    let pages = std::fs::metadata(&path).unwrap().len() / 4096;
    let noise = vec![0x5a; 4096 * usize::try_from(pages - 1).unwrap()];
    std::os::unix::fs::FileExt::write_all_at(&std::fs::File::options().write(true).open(&path).unwrap(), &noise, 4096)
        .unwrap();
    spool.connection.release_memory().unwrap();
    assert!(spool.append(&events(1), &[("k", b"v")], NOW).is_err() || spool.read(0, 400, 400, usize::MAX).is_err());
    assert!(spool.heal(later(1)).unwrap());
    assert!(spool.loss().is_some_and(|loss| loss.moved_to.exists()));
    assert_ne!(spool.view().spool, id);
    spool.append(&events(1), &[], NOW).unwrap();
}

#[test]
fn one_agent_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let spool = open(&folder);
    let second = Spool::open(&folder.path().join("spool.db"), SpoolLimits::default(), boot(1), NOW);
    assert!(matches!(second, Err(SpoolError::Sqlite { .. })), "{second:?}");
    drop(spool);
    assert_eq!(open(&folder).loss(), None);
}

#[test]
fn a_file_of_a_later_version_or_of_somebody_else_is_not_written() {
    for setup in [
        "PRAGMA user_version = 99",
        "PRAGMA user_version = 1; CREATE TABLE theirs (x)",
        "CREATE TABLE theirs (x); PRAGMA application_id = 7",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool.db");
        Connection::open(&path).unwrap().execute_batch(setup).unwrap();
        let spool = open(&folder);
        let moved_to = spool.loss().expect("not taken for a spool").moved_to.clone();
        let mode: String =
            Connection::open(moved_to).unwrap().pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
        assert_eq!(mode, "delete");
    }
}

#[test]
fn few_damaged_files_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..6u64 {
        std::fs::write(folder.path().join("spool.db"), "no database at all, but some bytes").unwrap();
        Spool::open(&folder.path().join("spool.db"), SpoolLimits::default(), boot(1), later(n)).unwrap();
        for companion in ["spool.db-wal", "spool.db-shm"] {
            std::fs::remove_file(folder.path().join(companion)).ok();
        }
    }
    let names = std::fs::read_dir(folder.path()).unwrap().flatten();
    let damaged = names.filter(|item| item.file_name().to_string_lossy().contains(".damaged-")).count();
    assert_eq!(damaged, 3);
}

#[test]
fn what_is_too_large_is_refused_with_nothing_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(&folder);
    let mut large = event(1);
    if let FindingEvent::Opened(finding) = &mut large.event {
        finding.summary = "x".repeat(ENTRY_BODY_BYTES_MAX);
    }
    assert!(matches!(spool.append(&[event(1), large], &[], NOW), Err(SpoolError::TooLarge(_))));
    assert!(matches!(spool.put_state("k", &vec![0; STATE_BYTES_MAX + 1]), Err(SpoolError::StateTooLarge { .. })));
    assert_eq!(spool.view().head, 0);
}

#[tokio::test]
async fn the_view_is_up_to_date_when_an_append_returns() {
    let folder = tempfile::tempdir().unwrap();
    let handle = spawn(open(&folder)).unwrap();
    let position = handle.append(events(2), vec![("k".to_owned(), b"v".to_vec())], NOW).await.unwrap();
    assert_eq!(handle.view().head, position.sequence);
    let kept = handle.call(|spool| spool.get_state("k")).await.unwrap();
    assert_eq!(kept.as_deref(), Some(&b"v"[..]));
}

#[test]
fn an_owner_with_work_of_its_own_is_rung_for_and_does_what_was_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (mut owner, handle) = own(open(&folder)).unwrap();
    let asker = handle.clone();
    let asking = std::thread::spawn(move || block_on(asker.append(events(3), Vec::new(), NOW)));
    let own_position = owner.append(&events(1), &[], NOW).unwrap();
    owner.serve_until(Duration::from_millis(10), || asking.is_finished());
    assert_eq!(asking.join().unwrap().unwrap().sequence + own_position.sequence, 5);
    assert_eq!(handle.view().head, 4);
    drop(owner);
    assert!(matches!(block_on(handle.append(events(1), Vec::new(), NOW)), Err(SpoolError::Closed)));
}

/// A runtime for one question.
fn block_on<T>(question: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(question)
}
