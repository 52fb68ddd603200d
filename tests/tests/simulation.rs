//! Many seeded worlds. `MUSTER_SEEDS=n` runs more of them, `MUSTER_SEED=n` one; a failing one leaves its trace.

use muster_tests::world::World;
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Seeds of an ordinary run: seconds, not minutes.
const SEEDS: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn seeded_worlds_keep_their_promises_and_heal() {
    let seeds = match number("MUSTER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("MUSTER_SEEDS").unwrap_or(SEEDS),
    };
    let enough = seeds.end.saturating_sub(seeds.start) >= SEEDS;
    let mut seen: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in seeds {
        let mut world = World::new(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            let path = std::env::temp_dir().join(format!("muster-world-{seed}.trace"));
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(world.trace.join("\n").as_bytes()).unwrap();
            println!("seed {seed} failed; its trace is in {}; again with MUSTER_SEED={seed}", path.display());
            resume_unwind(panic);
        }
        for (what, count) in world.seen {
            *seen.entry(what).or_default() += count;
        }
    }
    // A promise about what never happens in any world is worth nothing.
    for what in [
        "an incident is silenced",
        "an escalation",
        "a severity by hand",
        "a gathering",
        "pages that merge",
        "a storm that waits for its dead",
        "an end that its loop alone tells",
    ] {
        assert!(!enough || seen.contains_key(what), "no world had {what}: {seen:?}");
    }
}

#[test]
fn a_seed_gives_the_same_world_each_time() {
    let run = || {
        let mut world = World::new(7);
        world.run();
        world.trace
    };
    assert_eq!(run(), run());
}
