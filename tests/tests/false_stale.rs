//! No agent that lives is ever called silent: a hundred thousand agent-hours with losses, cuts and standstills here, ten
//! million by `cargo xtask fleet-sim --only loss --agent-hours 10000000`.

use muster_tests::loss::{Conditions, run};
use std::time::Duration;

const SEED: u64 = 20_261_122;

#[test]
fn a_hundred_thousand_agent_hours_without_a_false_alarm() {
    let outcome = run(SEED, 1_000, 100, &Conditions::default()).unwrap();
    assert_eq!((outcome.agent_hours, outcome.false_stale), (100_000, 0), "{outcome:?}");
    // Trouble there was.
    assert!(outcome.lost > 1_000_000 && outcome.partitions > 10_000 && outcome.pauses > 1_000, "{outcome:?}");
    assert!(outcome.reconnects > 5_000 && outcome.longest_gap_ms > 7_000, "{outcome:?}");
}

#[test]
fn a_threshold_that_is_too_sharp_is_found_out() {
    let mut sharp = Conditions::default();
    sharp.policy.stale_after = 2;
    let outcome = run(SEED, 200, 100, &sharp).unwrap();
    assert!(outcome.false_stale > 0, "{outcome:?}");
    let mut hasty = Conditions::default();
    hasty.policy.reconnect_max = Duration::ZERO;
    hasty.fleet = 1;
    assert!(run(SEED, 200, 100, &hasty).unwrap().false_stale > 0);
}

#[test]
fn the_same_seed_lives_the_same_lives() {
    let conditions = Conditions::default();
    assert_eq!(run(7, 20, 50, &conditions), run(7, 20, 50, &conditions));
    assert_ne!(run(7, 20, 50, &conditions), run(8, 20, 50, &conditions));
}
