//! The agent's own readers take any bytes: a bounded run, on noise and on damaged seeds. The parsers of the core have
//! theirs beside them; the long run is fuzzing (`fuzz/README.md`).

#[expect(unreachable_pub, reason = "the fuzz targets use this file as well")]
mod parsers;

use muster_agent::clock;
use muster_common::finding::FindingEvent;
use parsers::PARSERS;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use std::path::{Path, PathBuf};

/// Inputs of each reader; a few write files or run every probe.
const CASES: u32 = 60;

fn seeds_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name)
}

#[test]
fn any_bytes_are_taken() {
    for (name, parse) in PARSERS {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(seeds_folder(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in &seeds {
            parse(seed);
        }
        let harm = (any::<Index>(), proptest::collection::vec((any::<Index>(), any::<u8>()), 0..5), any::<Index>());
        let damaged = harm.prop_map(|(seed, harm, cut)| {
            let mut bytes = seed.get(&seeds).clone();
            for (at, byte) in harm.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            // Most are whole.
            bytes.truncate((cut.index(4 * bytes.len() + 1)).max(1));
            bytes
        });
        let noise = proptest::collection::vec(any::<u8>(), 0..300);
        let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(CASES) });
        let outcome = runner.run(&prop_oneof![4 => damaged, 1 => noise], |bytes| {
            parse(&bytes);
            Ok(())
        });
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// The seed of a finding is one.
#[test]
fn the_seeds_are_understood() {
    let seed = |name: &str| std::fs::read(seeds_folder(name)).unwrap();
    let event = muster_proto::convert::finding_event(&seed("wire/opened")).unwrap();
    assert!(matches!(event, FindingEvent::Opened(_)));
    let text = String::from_utf8(seed("agent_config/all")).unwrap();
    assert_eq!(muster_agent::config::Config::parse("all", &text).map(|config| config.services.len()).unwrap(), 1);
    let held = muster_agent::freezes::read(&seeds_folder("freezes/two"), clock::now().wall).unwrap();
    assert_eq!(held.len(), 1);
}
