//! Every parser of bytes from outside takes any bytes without panic and within its bounds: a bounded run, on noise and
//! on seeds with damage. The long run is fuzzing (`fuzz/README.md`).

#![expect(clippy::disallowed_methods, reason = "the core does no I/O; this test reads its seeds")]

#[expect(unreachable_pub, reason = "the fuzz targets use this file as well")]
mod parsers;

use parsers::{PARSERS, Parser};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Inputs of each parser.
const CASES: u32 = 500;

/// Harm done to a seed, and noise in its place.
#[derive(Debug, Clone)]
struct Damage {
    seed: Index,
    bytes: Vec<(Index, u8)>,
    /// Eight bytes at once: offsets and lengths of binary files.
    number: Option<(Index, u64)>,
    /// A part is cut out and put in again elsewhere, twice.
    moved: Option<(Index, Index, Index)>,
    cut: Option<Index>,
    /// Digits of texts become very long ones.
    long_numbers: bool,
}

fn damage() -> impl Strategy<Value = Damage> {
    let number = prop_oneof![Just(0), Just(1), Just(u64::MAX), Just(1 << 63), any::<u64>(), 0u64..4096];
    (
        any::<Index>(),
        proptest::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        proptest::option::weighted(0.3, (any::<Index>(), number)),
        proptest::option::weighted(0.3, any::<(Index, Index, Index)>()),
        proptest::option::weighted(0.3, any::<Index>()),
        proptest::bool::weighted(0.1),
    )
        .prop_map(|(seed, bytes, number, moved, cut, long_numbers)| Damage {
            seed,
            bytes,
            number,
            moved,
            cut,
            long_numbers,
        })
}

impl Damage {
    fn done_to(&self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.seed.get(seeds).clone();
        if let Some((from, length, to)) = self.moved.filter(|_| !bytes.is_empty()) {
            let from = from.index(bytes.len());
            let part = bytes[from..from + length.index(bytes.len() - from)].to_vec();
            let to = to.index(bytes.len());
            bytes.splice(to..to, [part.clone(), part].concat());
        }
        if let Some((at, number)) = self.number.filter(|_| bytes.len() >= 8) {
            let at = at.index(bytes.len() / 8) * 8;
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        for (at, byte) in self.bytes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if self.long_numbers {
            bytes = bytes.iter().flat_map(|byte| vec![*byte; if byte.is_ascii_digit() { 20 } else { 1 }]).collect();
        }
        if let Some(cut) = self.cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes
    }
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let folder = fuzz().join("seeds").join(name);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
}

fn try_all(parsers: &[Parser]) {
    for (name, parse) in parsers {
        let seeds = seeds(name);
        for seed in &seeds {
            parse(seed);
        }
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(CASES) });
        let damaged = damage().prop_map(|damage| damage.done_to(&seeds));
        let noise = proptest::collection::vec(any::<u8>(), 0..400);
        let outcome = runner.run(&prop_oneof![3 => damaged, 1 => noise], |bytes| {
            parse(&bytes);
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

// In four parts, so that they run beside one another.
#[test]
fn any_bytes_are_taken_by_the_first_parsers() {
    try_all(&PARSERS[..6]);
}

#[test]
fn any_bytes_are_taken_by_the_next_parsers() {
    try_all(&PARSERS[6..12]);
}

#[test]
fn any_bytes_are_taken_by_the_parsers_after_them() {
    try_all(&PARSERS[12..18]);
}

#[test]
fn any_bytes_are_taken_by_the_last_parsers() {
    try_all(&PARSERS[18..]);
}

/// A seed that nothing is read from tests nothing: each parser finds what its seeds hold.
#[test]
fn the_seeds_are_understood() {
    use muster_agent_core::health::certificate::Certificate;
    use muster_agent_core::journal_file::JournalFile;
    use muster_agent_core::kmsg::parse_record;
    use muster_agent_core::sqlite::header::{Header, JournalHeader, WalIndex};
    use muster_agent_core::sqlite::wal;
    let seed = |name: &str| std::fs::read(fuzz().join("seeds").join(name)).unwrap();
    assert!(Certificate::parse(&seed("certificate/made")).is_some());
    assert!(parse_record(&seed("kmsg/killed")).is_some());
    assert!(Header::parse(&seed("sqlite_header/database")).is_some_and(|header| header.is_wal()));
    assert!(JournalHeader::parse(&seed("sqlite_header/journal")).is_some());
    let little_endian = cfg!(target_endian = "little");
    assert!(!little_endian || WalIndex::parse(&seed("sqlite_header/wal-index")).is_some());
    assert!(!little_endian || wal::Index::parse(&seed("sqlite_wal/index")).is_some_and(|index| index.sound));
    let log = seed("sqlite_wal/log");
    let mut chain = wal::Chain::new(wal::LogHeader::parse(&log).unwrap());
    let valid = log[32..].chunks(24 + 512).take_while(|frame| chain.take(frame)).count();
    assert!(valid > 1, "{valid} frames");
    for form in 0..4 {
        let bytes = seed(&format!("journal_file/form{form}"));
        let mut file = JournalFile::open(bytes.as_slice()).unwrap();
        let chain = file.find(b"_TRANSPORT=kernel").unwrap();
        let [first, _] = file.offsets(chain, 0, 10).try_into().unwrap();
        assert_eq!(file.entry(first, &["MESSAGE"]).unwrap().field(0), Some(&b"line 1"[..]), "form {form}");
    }
}

/// No parser without a target, and no target without a parser and seeds.
#[test]
fn each_parser_has_a_fuzz_target_and_each_target_seeds() {
    let stems = |folder: &str| -> BTreeSet<String> {
        let entries = std::fs::read_dir(fuzz().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    let targets = stems("fuzz_targets");
    assert_eq!(targets, stems("seeds"));
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
            "{target} is not in fuzz/Cargo.toml"
        );
    }
    for (name, _) in PARSERS {
        assert!(targets.contains(name), "{name} has no fuzz target");
    }
}
