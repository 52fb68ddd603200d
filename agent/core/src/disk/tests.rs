//! Readings in, verdicts out.

use super::*;
use crate::mounts::parse;
use muster_common::time::Timestamp;
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn mount(options: &str, fs_type: &str, super_options: &str) -> Mount {
    parse(&format!("1 0 8:1 / /var {options} - {fs_type} /dev/sda1 {super_options}\n")).remove(0)
}

fn uses() -> Vec<Use> {
    let one = |service: &str, what| Use { service: service.to_owned(), what };
    vec![one("spl", "database"), one("spl", "backups"), one("hub", "logs")]
}

fn space(available_bytes: u64) -> Space {
    Space {
        total_bytes: 110 * GIB,
        free_bytes: available_bytes + 10 * GIB,
        available_bytes,
        inodes: 1000,
        inodes_available: 900,
    }
}

struct Bench {
    judge: DiskJudge,
    thresholds: Thresholds,
    now_ms: u64,
}

impl Bench {
    fn new() -> Self {
        Self { judge: DiskJudge::default(), thresholds: Thresholds::default(), now_ms: 0 }
    }

    fn look(&mut self, reading: &Reading<'_>) -> Judgement {
        self.now_ms += 30_000;
        let now = Now { boottime_ms: self.now_ms, wall: Timestamp::UNIX_EPOCH };
        self.judge.judge(reading, &uses(), self.thresholds, now)
    }

    fn space(&mut self, space: Space) -> Judgement {
        let mount = mount("rw", "ext4", "rw");
        self.look(&Reading { mount: &mount, host_read_only: None, fstab_writable: None, space: Some(space) })
    }

    fn options(&mut self, mount: &Mount, host_read_only: Option<bool>, fstab: Option<bool>) -> Vec<(Reason, Grade)> {
        let reading = Reading { mount, host_read_only, fstab_writable: fstab, space: Some(space(50 * GIB)) };
        self.look(&reading).problems.iter().map(|problem| (problem.reason, problem.grade)).collect()
    }
}

fn reasons(judgement: &Judgement) -> Vec<Reason> {
    judgement.problems.iter().map(|problem| problem.reason).collect()
}

#[test]
fn space_is_low_at_the_threshold_and_well_again_with_a_margin() {
    let mut bench = Bench::new();
    assert_eq!(reasons(&bench.space(space(5 * GIB))), []);
    assert_eq!(reasons(&bench.space(space(4 * GIB))), [Reason::DiskSpaceLow]);
    assert_eq!(reasons(&bench.space(space(5 * GIB + GIB / 4))), [Reason::DiskSpaceLow]);
    assert_eq!(reasons(&bench.space(space(6 * GIB))), []);
    bench.thresholds.free = Least::Amount(50 * GIB);
    assert_eq!(reasons(&bench.space(space(49 * GIB))), [Reason::DiskSpaceLow]);
    bench.thresholds.free = Least::Percent(0);
    assert_eq!(reasons(&bench.space(space(0))), []);
}

#[test]
fn the_sentence_says_how_much_how_long_and_who() {
    let mut bench = Bench::new();
    let mut last = Judgement::default();
    for step in 0..20 {
        last = bench.space(space(4 * GIB - step * 100 * (1 << 20)));
    }
    let problem = &last.problems[0];
    assert_eq!(
        problem.summary,
        "/var has 2.1 GiB of 100 GiB left (2.1 %), less than 5 GiB; full in about 10 min at 3.3 MiB/s; 10 GiB more \
         are reserved for root; hub has its logs there; spl has its database and backups there"
    );
    assert_eq!(problem.severity, None);
    assert!(problem.evidence.get("full_in_ms").is_some());
    let full = bench.space(space(0));
    assert!(full.problems[0].summary.starts_with("/var is full: nothing of 100 GiB is left; 10 GiB more"));
    assert_eq!(full.problems[0].severity, Some(Severity::Sev2));
}

#[test]
fn inodes_run_out_on_their_own() {
    let mut bench = Bench::new();
    let judgement = bench.space(Space { inodes_available: 10, ..space(50 * GIB) });
    assert_eq!(reasons(&judgement), [Reason::DiskInodesLow]);
    assert!(judgement.problems[0].summary.contains("10 of 1000 inodes left (1.0 %), less than 50, though 50 GiB"));
    assert_eq!(reasons(&bench.space(Space { inodes_available: 54, ..space(50 * GIB) })), [Reason::DiskInodesLow]);
    assert_eq!(reasons(&bench.space(Space { inodes_available: 60, ..space(50 * GIB) })), []);
    // btrfs makes them as needed.
    assert_eq!(reasons(&bench.space(Space { inodes: 0, inodes_available: 0, ..space(50 * GIB) })), []);
    // What counts nothing at all has no room to run out of.
    assert_eq!(reasons(&bench.space(Space::default())), []);
}

#[test]
fn read_only_is_told_only_where_it_was_or_should_be_writable() {
    let (rw, ro) = (mount("rw", "ext4", "rw"), mount("ro", "ext4", "ro"));
    let told = |grade| vec![(Reason::DiskReadOnly, grade)];
    let mut bench = Bench::new();
    assert_eq!(bench.options(&rw, None, None), []);
    assert_eq!(bench.options(&ro, None, None), told(Grade::Confirmed));
    assert_eq!(bench.options(&ro, None, Some(false)), told(Grade::Confirmed));
    assert_eq!(bench.options(&rw, None, None), []);
    // Another device at the same place was never writable.
    let other = Mount { source: "/dev/sdb1".into(), ..ro.clone() };
    assert_eq!(bench.options(&other, None, None), []);
    assert_eq!(Bench::new().options(&ro, None, None), []);
    assert_eq!(Bench::new().options(&ro, None, Some(true)), told(Grade::Likely));
    assert_eq!(Bench::new().options(&mount("ro", "ext4", "ro,errors=remount-ro"), None, None), told(Grade::Possible));
    assert_eq!(Bench::new().options(&mount("ro", "ext4", "ro,errors=remount-ro"), None, Some(false)), []);
    assert_eq!(Bench::new().options(&mount("ro", "squashfs", "ro"), None, Some(true)), []);
}

#[test]
fn the_view_from_inside_a_sandbox_is_no_proof() {
    let sandboxed = mount("ro", "ext4", "rw,errors=remount-ro");
    let mut bench = Bench::new();
    assert_eq!(bench.options(&sandboxed, None, Some(true)), []);
    assert_eq!(bench.options(&sandboxed, Some(false), Some(true)), []);
    // PID 1 sees that somebody remounted it.
    assert_eq!(bench.options(&sandboxed, Some(true), None), [(Reason::DiskReadOnly, Grade::Confirmed)]);
    assert_eq!(bench.options(&mount("ro", "ext4", "ro"), None, None), [(Reason::DiskReadOnly, Grade::Confirmed)]);
}

#[test]
fn a_reboot_keeps_what_was_writable_and_forgets_the_slope() {
    let mut bench = Bench::new();
    (0..20).for_each(|step| drop(bench.space(space(4 * GIB - step * 100 * (1 << 20)))));
    let saved = serde_json::to_string(&bench.judge).unwrap();
    bench.judge = serde_json::from_str(&saved).unwrap();
    bench.judge.rebooted();
    bench.now_ms = 0;
    let judgement = bench.space(space(3 * GIB));
    assert_eq!(judgement.problems[0].evidence.get("full_in_ms"), None);
    assert_eq!(bench.options(&mount("ro", "ext4", "ro"), None, None)[0].0, Reason::DiskReadOnly);
}

proptest! {
    #[test]
    fn never_panics(numbers in proptest::collection::vec(any::<u64>(), 5), amount in any::<u64>(), runs in 1..4u8) {
        let mut bench = Bench::new();
        bench.thresholds = Thresholds { free: Least::Amount(amount), inodes: Least::Percent(90) };
        for _ in 0..runs {
            let space = Space {
                total_bytes: numbers[0],
                free_bytes: numbers[1],
                available_bytes: numbers[2],
                inodes: numbers[3],
                inodes_available: numbers[4],
            };
            bench.space(space);
        }
    }
}
