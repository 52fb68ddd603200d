//! Many seeded worlds. `MUSTER_SEEDS=n` runs more of them, `MUSTER_SEED=n` one; a failing one leaves its trace.

use muster_tests::world::World;
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
    for seed in seeds {
        let mut world = World::new(seed);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            let path = std::env::temp_dir().join(format!("muster-world-{seed}.trace"));
            let mut file = std::fs::File::create(&path).unwrap();
            file.write_all(world.trace.join("\n").as_bytes()).unwrap();
            println!("seed {seed} failed; its trace is in {}; again with MUSTER_SEED={seed}", path.display());
            resume_unwind(panic);
        }
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
