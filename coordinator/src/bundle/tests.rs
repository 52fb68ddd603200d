//! Bundles written and read again: whole, damaged in every way, and made to harm.

use super::*;
use crate::store::{JournalHash, StoredEntry};
use flate2::Compression;
use flate2::write::GzEncoder;
use muster_common::archive::{BLOCK_BYTES, pack, unpack};
use muster_common::ids::{CoordinatorId, Epoch, FleetName};
use muster_coordinator_core::entry::{Entry, Fact};
use muster_coordinator_core::machine::Machine;
use muster_coordinator_core::state::State;
use proptest::prelude::*;
use std::io::{Read, Write};

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_ms(1_795_220_000_000) + std::time::Duration::from_secs(seconds)
}

/// A journal of some entries, and State after each of its first ones.
fn journal() -> Vec<Entry> {
    let mut machine = Machine::new(State::genesis());
    let coordinator = CoordinatorId::new("coord-a").unwrap();
    let epoch = Epoch { number: 1, coordinator: coordinator.clone() };
    let (fleet, version) = (FleetName::new("test").unwrap(), "0.1.0".to_owned());
    let mut entries = machine.feed(at(0), Fact::Started { coordinator, fleet, version, epoch });
    for n in 1..40 {
        entries.extend(machine.feed(at(n), Fact::Paused { gap_ms: n }));
    }
    entries.extend(machine.run_deadlines(at(1000)));
    entries
}

fn stored(entries: &[Entry]) -> Vec<StoredEntry> {
    let mut hash = JournalHash::ZERO;
    let stored = entries.iter().map(|entry| {
        let body = serde_json::to_vec(entry).unwrap();
        hash = hash.then(&body);
        StoredEntry { index: entry.index, hash, body }
    });
    stored.collect()
}

/// A bundle of the entries after the first `skip`.
fn bundle(skip: usize) -> Vec<u8> {
    let entries = journal();
    let stored = stored(&entries);
    let mut state = State::genesis();
    entries.iter().take(skip).for_each(|entry| muster_coordinator_core::apply(&mut state, entry));
    let before = stored.get(skip.wrapping_sub(1)).map_or(JournalHash::ZERO, |stored| stored.hash);
    let last = stored.last().unwrap();
    let manifest = Manifest {
        kind: KIND.to_owned(),
        format_version: FORMAT_VERSION,
        coordinator_version: "0.1.0".to_owned(),
        coordinator: "coord-a".to_owned(),
        fleet: "test".to_owned(),
        made: at(2000),
        rules_version: 1,
        incident: None,
        state_index: state.head_index(),
        state_bytes: 0,
        state_sha256: String::new(),
        chain_before: String::new(),
        first_index: state.head_index() + 1,
        last_index: last.index,
        first_at: state.last_at(),
        last_at: entries.last().unwrap().at,
        chain_after: last.hash.to_string(),
        missing: vec!["the moon".to_owned()],
    };
    let body = serde_json::to_vec(&state).unwrap();
    let state = (skip > 0).then_some(body.as_slice());
    let mut writer = Writer::begin(Vec::new(), manifest, state, before).unwrap();
    stored.iter().skip(skip).for_each(|stored| writer.push(stored).unwrap());
    writer.finish().unwrap().0
}

/// Everything in it, or what is wrong.
fn read(bytes: &[u8]) -> Result<(Manifest, State, Vec<Entry>), BundleError> {
    let mut reader = Reader::open(bytes)?;
    let state = reader.take_state().unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        entries.push(entry);
    }
    Ok((reader.manifest().clone(), state, entries))
}

fn unzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The bundle with one file of it changed, or left out where the edit empties it.
fn edited(name: &str, edit: impl Fn(&mut Vec<u8>)) -> String {
    let plain = unzip(&bundle(3));
    let mut files: Vec<(String, Vec<u8>)> =
        unpack(&plain).unwrap().into_iter().map(|(name, content)| (name.to_owned(), content.to_vec())).collect();
    let file = files.iter_mut().find(|(found, _)| found == name).unwrap();
    edit(&mut file.1);
    files.retain(|(_, content)| !content.is_empty());
    let files = files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    match read(&zip(&pack(files, 0))) {
        Ok(_) => "it was read".to_owned(),
        Err(error) => muster_common::chain::Chain(&error).to_string(),
    }
}

fn replace(bytes: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert!(text.contains(from), "{from}");
    *bytes = text.replacen(from, to, 1).into_bytes();
}

#[test]
fn what_is_written_is_read() {
    let all = journal();
    for skip in [0, 3, all.len()] {
        let (manifest, state, entries) = read(&bundle(skip)).unwrap();
        assert_eq!((state.head_index(), entries.as_slice()), (skip as u64, &all[skip..]));
        assert_eq!((manifest.last_index, manifest.missing), (all.len() as u64, vec!["the moon".to_owned()]));
    }
    let plain = unzip(&bundle(0));
    let names: Vec<&str> = unpack(&plain).unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [MANIFEST, "journal/000001.ndjson", END], "a journal from its first entry on needs no State");
}

#[test]
fn many_entries_are_many_segments_and_one_journal() {
    // Entries of about 64 KiB each: a segment holds some dozens.
    let mut hash = JournalHash::ZERO;
    let text = "x".repeat(60_000);
    let made: Vec<StoredEntry> = (1..=200)
        .map(|index| {
            let fact = Fact::DecidePanicked { entry: index, message: text.clone() };
            let body = muster_coordinator_core::entry::EntryBody::Fact(fact);
            let body = serde_json::to_vec(&Entry { index, at: at(index), trace: index, body }).unwrap();
            hash = hash.then(&body);
            StoredEntry { index, hash, body }
        })
        .collect();
    let (mut manifest, _, _) = read(&bundle(0)).unwrap();
    (manifest.last_index, manifest.chain_after) = (200, hash.to_string());
    let mut writer = Writer::begin(Vec::new(), manifest, None, JournalHash::ZERO).unwrap();
    made.iter().for_each(|stored| writer.push(stored).unwrap());
    let (bytes, counts) = writer.finish().unwrap();
    assert_eq!(counts.facts, 200);
    let plain = unzip(&bytes);
    assert_eq!(unpack(&plain).unwrap().len(), 2 + 3, "12 MB in segments of 4 MiB");
    assert_eq!(read(&bytes).unwrap().2.len(), 200);
}

#[test]
fn a_writer_takes_only_what_continues_the_journal() {
    let entries = stored(&journal());
    let (manifest, _, _) = read(&bundle(0)).unwrap();
    let begin = || Writer::begin(Vec::new(), manifest.clone(), None, JournalHash::ZERO).unwrap();
    assert!(matches!(begin().push(&entries[1]), Err(WriteError::NotNext(2))));
    let mut other = entries[0].clone();
    other.hash = JournalHash::ZERO;
    assert!(matches!(begin().push(&other), Err(WriteError::NotNext(1))));
    assert!(matches!(begin().finish(), Err(WriteError::NotNext(1))), "half a journal is no bundle");
}

#[test]
fn what_was_changed_is_found() {
    let check = |name: &str, from: &str, to: &str, expected: &str| {
        let found = edited(name, |bytes| replace(bytes, from, to));
        assert!(found.contains(expected), "{name}: {from:?} -> {to:?}: {found}");
    };
    check(MANIFEST, "muster-coordinator journal", "muster-agent bundle", "of the kind \"muster-agent bundle\"");
    check(MANIFEST, "\"format_version\": 1", "\"format_version\": 2", "use a newer muster-coordinator");
    check(MANIFEST, "\"state_index\": 3", "\"state_index\": 4", "it stands for another entry");
    check(MANIFEST, "\"chain_before\": \"", "\"chain_before\": \"x", "the chain before it is no hash");
    check(MANIFEST, "\"chain_after\": \"", "\"chain_after\": \"0", "not those that were packed");
    check(MANIFEST, "{", "[", "is not what this version writes");
    check(STATE, "\"fleet\":\"test\"", "\"fleet\":\"tesu\"", "another hash");
    check(STATE, "\"fleet\":\"test\"", "\"fleet\":\"tests\"", "another size");
    let journal = "journal/000001.ndjson";
    check(journal, "\"gap_ms\":7", "\"gap_ms\":8", "not those that were packed");
    check(journal, "\"index\":9", "\"index\":8", "entry 9 should follow");
    check(journal, "\"at\":1795220009000", "\"at\":1795210009000", "is older than the one before");
    check(journal, "\"paused\"", "\"slept\"", "does not read");
    check(END, "\"facts\": ", "\"facts\": 9", "other counts");
    for (name, expected) in
        [(MANIFEST, MANIFEST), (STATE, "another size"), (journal, "other counts"), (END, "cut short")]
    {
        let found = edited(name, Vec::clear);
        assert!(found.contains(expected), "without {name}: {found}");
    }
    let found = edited(journal, |bytes| bytes.truncate(bytes.len() - 3));
    assert!(found.contains("half a line"), "{found}");
}

#[test]
fn files_that_do_not_belong_there_are_refused() {
    let plain = unzip(&bundle(3));
    let files = unpack(&plain).unwrap();
    let more = files.iter().copied().chain([("more", &b"x"[..])]);
    let found = read(&zip(&pack(more, 0))).unwrap_err().to_string();
    assert!(found.contains("\"more\" where the end should be"), "{found}");
    let renamed = files
        .iter()
        .map(|(name, content)| (if name.starts_with(SEGMENT) { "journal/000002.ndjson" } else { name }, *content));
    let found = read(&zip(&pack(renamed, 0))).unwrap_err().to_string();
    assert!(found.contains("the next segment"), "{found}");
}

#[test]
fn what_claims_to_be_large_costs_nothing_and_is_refused() {
    // A header that promises a State of a terabyte, and one of less than the bound with nothing behind it.
    let manifest = {
        let plain = unzip(&bundle(3));
        unpack(&plain).unwrap()[0].1.to_vec()
    };
    let with = |size: u64| {
        let mut plain = pack([(MANIFEST, manifest.as_slice())], 0);
        plain.truncate(plain.len() - 2 * BLOCK_BYTES);
        plain.extend_from_slice(&muster_common::archive::header(STATE, size, 0));
        muster_common::chain::Chain(&read(&zip(&plain)).unwrap_err()).to_string()
    };
    assert!(with(1 << 32).contains("larger than Muster writes it"));
    assert!(with(1 << 20).contains("cut short"));
    // Ten megabytes of nothing, packed into ten kilobytes: no entry is made of them.
    let plain = unzip(&bundle(0));
    let files = unpack(&plain).unwrap();
    let zeros = vec![0; 10 << 20];
    let bomb = files
        .iter()
        .map(|(name, content)| if name.starts_with(SEGMENT) { (*name, zeros.as_slice()) } else { (*name, *content) });
    let found = read(&zip(&pack(bomb, 0))).unwrap_err();
    assert!(matches!(found, BundleError::NotNext { .. }), "{found}");
}

proptest! {
    #[test]
    fn no_bytes_panic(any_bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
        prop_assert!(read(&any_bytes).is_err());
        prop_assert!(read(&zip(&any_bytes)).is_err());
    }

    #[test]
    fn no_damage_panics_or_passes(place in any::<prop::sample::Index>(), bit in 0u8..8, packed in any::<bool>()) {
        let whole = bundle(3);
        let mut bytes = if packed { whole.clone() } else { unzip(&whole) };
        let at = place.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let found = read(&if packed { bytes } else { zip(&bytes) });
        // Damage of what nothing is concluded from (a time in a header, a word of the manifest) may pass; what is
        // replayed is then what was packed.
        if let Ok((_, state, entries)) = found {
            let (_, whole_state, whole_entries) = read(&whole).unwrap();
            prop_assert_eq!((state, entries), (whole_state, whole_entries));
        }
    }

    #[test]
    fn what_is_cut_short_is_refused(place in any::<prop::sample::Index>()) {
        let whole = bundle(3);
        let plain = unzip(&whole);
        let end = place.index(plain.len() - 2 * BLOCK_BYTES);
        prop_assert!(read(&zip(&plain[..end])).is_err());
        prop_assert!(read(&whole[..place.index(whole.len() - 64)]).is_err());
    }
}
