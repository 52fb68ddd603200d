//! What each detector makes of many hosts, or of many occurrences: at the threshold, just below it, and late.

use muster_common::evidence::Evidence;
use muster_common::finding::{Finding, FindingEvent};
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::detect;
use muster_coordinator_core::policy::Policy;
use muster_coordinator_core::state::Incident;
use muster_tests::scenario::{Fleet, agent, check, key, policy};
use std::time::Duration;

/// `connect` with a label each, at second 0.
fn with_label(label: &str, names: &[&str]) -> String {
    names.iter().map(|name| format!("0 label {name} {label}\n0 connect {name}\n")).collect()
}

fn newest<'a>(fleet: &'a Fleet, cause: &str) -> &'a Incident {
    fleet.machine.state().newest_incident(cause).unwrap_or_else(|| panic!("no incident {cause}:\n{}", fleet.log()))
}

fn run(policy: Policy, script: &str) -> Fleet {
    let mut fleet = Fleet::new(policy);
    fleet.run(script);
    fleet.check_journal();
    fleet
}

mod silences {
    use super::*;

    #[test]
    fn a_zone_that_falls_silent_is_one_page_that_names_it() {
        let far = ["f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "g1", "g2", "g3"];
        let script = with_label("zone=a", &far)
            + &with_label("zone=b", &["b1", "b2", "b3"])
            + "100 silent b1 nothing
               101 silent b2 reset
               103 silent b3 nothing
               150 silent f1 nothing
               200 heard b1
               201 heard b2
               202 heard b3
               1200 end";
        let fleet = check(
            &script,
            "100 opened sev3 agent_stale host/b1/agent#1
             101 opened sev3 agent_stale host/b2/agent#1
             103 opened sev1 mass_stale fleet/mass_stale/zone=b#1
             103 folded host/b1/agent into fleet/mass_stale/zone=b
             103 folded host/b2/agent into fleet/mass_stale/zone=b
             108 page trigger sev1 mass_stale fleet/mass_stale/zone=b
             150 opened sev3 agent_stale host/f1/agent#1
             202 recovering fleet/mass_stale/zone=b
             210 page trigger sev3 agent_stale host/f1/agent
             1102 resolved fleet/mass_stale/zone=b
             1102 page resolve sev1 mass_stale fleet/mass_stale/zone=b",
        );
        let mass = newest(&fleet, "fleet/mass_stale/zone=b");
        assert!(mass.title.starts_with("all 3 agents of zone=b fell silent together"), "{}", mass.title);
        assert!(mass.why.contains("at least 3 agents and 50 % of those heard of zone=b"), "{}", mass.why);
        let last = mass.timeline.iter().rev().find(|line| line.text.starts_with("resolved")).unwrap();
        assert!(last.text.contains("3 of 3 agents are back; none is missing"), "{}", last.text);
    }

    #[test]
    fn below_the_count_or_the_share_of_a_zone_each_is_its_own() {
        let far = ["f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9"];
        // Two of two are too few; three of seven are too small a share.
        let script = with_label("zone=a", &far)
            + &with_label("zone=b", &["b1", "b2"])
            + &with_label("zone=c", &["c1", "c2", "c3", "c4", "c5", "c6", "c7"])
            + "100 silent b1 nothing
               101 silent b2 nothing
               200 silent c1 nothing
               201 silent c2 nothing
               202 silent c3 nothing
               203 end";
        let fleet = run(policy(), &script);
        assert!(!fleet.log().contains("mass_stale"), "{}", fleet.log());
        let looks = detect::explain(fleet.machine.state(), fleet.now, &agent("c1"));
        let look = looks.iter().find(|look| look.about == "fleet/mass_stale/zone=c").unwrap();
        assert_eq!(look.seen, "3 of 7 agents of zone=c (43 %) fell silent within 60 s", "{look:?}");
        assert!(!look.reached && look.held_back_by.contains("too few"), "{look:?}");
    }

    #[test]
    fn a_subnet_is_a_place_as_well_and_the_best_fitting_place_tells_it() {
        // rack=r1 has the three in the subnet and three others that go on.
        let mut script = String::new();
        for n in 1..=3 {
            script += &format!("0 address s{n} 10.0.1.{n}\n0 label s{n} rack=r1\n0 connect s{n}\n");
        }
        for n in 1..=3 {
            script += &format!("0 address t{n} 10.0.2.{n}\n0 label t{n} rack=r1\n0 connect t{n}\n");
        }
        for n in 1..=9 {
            script += &format!("0 address u{n} 10.{n}.3.1\n0 connect u{n}\n");
        }
        script += "100 silent s1 nothing\n100 silent s2 nothing\n100 silent s3 nothing\n130 end\n";
        let fleet = run(policy(), &script);
        let mass = newest(&fleet, "fleet/mass_stale/10.0.1.0/24");
        assert!(mass.title.starts_with("all 3 agents of 10.0.1.0/24 fell silent"), "{}", mass.title);
        assert!(fleet.machine.state().newest_incident("fleet/mass_stale/rack=r1").is_none(), "{}", fleet.log());
        assert_eq!(fleet.log().matches("page trigger").count(), 1, "{}", fleet.log());
    }

    #[test]
    fn what_grows_from_a_rack_to_a_zone_to_the_fleet_stays_one_page() {
        let mut script = String::new();
        for n in 1..=3 {
            script += &format!("0 label r{n} rack=r1\n0 label r{n} zone=b\n0 connect r{n}\n");
        }
        for n in 1..=3 {
            script += &format!("0 label z{n} zone=b\n0 connect z{n}\n");
        }
        script += &with_label("zone=a", &["a1", "a2", "a3", "a4", "a5", "a6", "a7"]);
        script += "100 silent r1 nothing\n100 silent r2 nothing\n100 silent r3 nothing\n";
        script += "102 silent z1 nothing\n103 silent z2 nothing\n104 silent z3 nothing\n";
        script += "300 end\n";
        let fleet = run(policy(), &script);
        let state = fleet.machine.state();
        // The fourth of thirteen is 30 % of the fleet.
        let mass = newest(&fleet, "fleet/mass_stale");
        assert!(state.unresolved("fleet/mass_stale/rack=r1").is_none(), "{}", fleet.log());
        assert!(mass.is_unresolved() && mass.agents.len() == 6, "{mass:?}");
        let pages: Vec<_> = state.past_pages().map(|record| &record.page).collect();
        let told = pages.iter().filter(|page| page.receiver == "ops").map(|page| page.title.as_str());
        let told: Vec<&str> = told.collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("all 6 agents of zone=b fell silent together"), "{told:?}");
    }

    #[test]
    fn an_agent_that_moves_takes_its_conditions_and_its_count_with_it() {
        // The invariants count the places anew after each line.
        let fleet = run(
            policy(),
            "0 label a zone=x
             0 connect a b c
             1 open a host memory memory_critical
             2 silent a nothing
             3 label a zone=y
             4 connect a
             5 clear a host memory memory_critical
             6 end",
        );
        assert!(fleet.machine.state().cause("fleet/reason/memory/zone=x").is_none());
    }

    #[test]
    fn a_silence_is_told_with_its_reason_and_its_end_with_the_reboot() {
        let fleet = run(
            policy(),
            "0 boot a 1
             0 boot b 1
             0 connect a b c d e
             100 gone a
             115 silent a reset
             200 silent b nothing
             250 boot a 2
             300 connect a
             301 connect b
             302 goodbye c
             902 silent c goodbye
             950 end",
        );
        let title = |name: &str| newest(&fleet, &format!("host/{name}/agent")).title.clone();
        assert!(title("a").contains("had its connection reset and did not come back"), "{}", title("a"));
        assert!(title("b").contains("says nothing on an open connection"), "{}", title("b"));
        assert!(title("c").contains("said goodbye and did not come back within 10 min"), "{}", title("c"));
        let recovered = |name: &str| {
            let incident = newest(&fleet, &format!("host/{name}/agent"));
            let line = incident.timeline.iter().find(|line| line.text.starts_with("recovering"));
            line.map(|line| line.text.clone()).unwrap_or_default()
        };
        assert!(recovered("a").contains("rebooted meanwhile (its boot id changed)"), "{}", recovered("a"));
        assert_eq!(recovered("b"), "recovering: the agent is heard again");
    }
}

mod restarts {
    use super::*;

    fn restarts(hosts: std::ops::Range<u32>, second: u64, build: &str) -> String {
        hosts.map(|n| format!("{second} occur h{n} spl process_restarted 0 {build}\n")).collect()
    }

    fn hosts(n: u32) -> String {
        (0..n).map(|n| format!("0 connect h{n}\n")).collect()
    }

    #[test]
    fn the_same_build_on_fourteen_hosts_is_one_page() {
        let script = hosts(14) + &restarts(0..14, 10, "sha256=aaaabbbbcccc") + "60 end\n";
        let fleet = run(policy(), &script);
        assert_eq!(fleet.log().matches("page trigger").count(), 1, "{}", fleet.log());
        let storm = newest(&fleet, "fleet/restart_storm/spl/aaaabbbbcccc");
        let page = &fleet.machine.state().past_pages().next_back().unwrap().page;
        assert_eq!((page.n_agents, page.services.as_slice()), (14, ["spl".to_owned()].as_slice()));
        assert!(page.title.contains("the same build aaaabbbbcccc, restarted 14 times on 14 hosts"), "{}", page.title);
        assert!(storm.is_unresolved());
    }

    /// A restart and how the old process ended.
    fn ended(fleet: &mut Fleet, host: &str, key_of_ending: &str, how: &str) {
        let words = format!("spl restarted: pid 1 became pid 2; the old one ended by {how}");
        let evidence = Evidence::new().text(key_of_ending, how).text("executable_sha256", "aaaa");
        let finding = Finding::new(key("spl", "/run/spl.pid", Reason::ProcessRestarted), &words).evidence(evidence);
        fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
    }

    #[test]
    fn the_page_of_a_storm_tells_how_they_ended_on_each_host_and_what_else_is_known() {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect h0 h1 h2 h3\n5 occur h0 spl update_failed 0\n10 end");
        ended(&mut fleet, "h0", "exit_status", "SIGSEGV");
        ended(&mut fleet, "h1", "exit_signal", "SIGSEGV");
        ended(&mut fleet, "h2", "exit_status", "exit code 3");
        fleet.run_line("60 end");
        fleet.check_journal();
        let page = fleet.pages().map(|(_, page)| page).find(|page| page.cause_key.starts_with("fleet/")).unwrap();
        let details: Vec<&str> = page.details.iter().map(String::as_str).collect();
        assert_eq!(details.first(), Some(&"how they ended: 2 × SIGSEGV, 1 × exit code 3"), "{details:#?}");
        for (host, how) in [("h0", "SIGSEGV"), ("h1", "SIGSEGV"), ("h2", "exit code 3")] {
            let tells = |line: &&str| line.starts_with(&format!("{host} at ")) && line.ends_with(how);
            assert_eq!(details.iter().copied().filter(tells).count(), 1, "{host}: {details:#?}");
        }
        assert!(details.iter().any(|line| line.starts_with("h0: update_failed at ")), "{details:#?}");
    }

    #[test]
    fn the_page_of_a_very_wide_storm_tells_some_hosts_and_how_many_more() {
        let script = hosts(30) + &restarts(0..30, 10, "sha256=aaaa") + "60 end\n";
        let fleet = run(policy(), &script);
        let page = &fleet.machine.state().past_pages().next_back().unwrap().page;
        assert_eq!(page.details.first().map(String::as_str), Some("how they ended: 30 × not known"));
        assert!(page.details.len() <= 12, "{:#?}", page.details);
        assert!(page.details.iter().any(|line| line.starts_with("and 23 more like these")), "{:#?}", page.details);
    }

    #[test]
    fn builds_that_are_below_the_threshold_count_together_once() {
        // Two hosts of each of two builds, and one that cannot tell its build.
        let script = hosts(6)
            + &restarts(0..2, 10, "sha256=aaaa")
            + &restarts(2..4, 11, "version=1.2")
            + &restarts(4..6, 12, "")
            + "60 end\n";
        let fleet = run(policy(), &script);
        let storm = newest(&fleet, "fleet/restart_storm/spl");
        assert_eq!(storm.agents.len(), 6, "{storm:?}");
        assert_eq!(fleet.log().matches(" opened ").count(), 1, "{}", fleet.log());
    }

    #[test]
    fn two_hosts_of_a_build_are_no_storm() {
        let script = hosts(3) + &restarts(0..2, 10, "sha256=aaaa") + &restarts(0..2, 11, "sha256=aaaa") + "700 end\n";
        assert_eq!(run(policy(), &script).log(), "");
    }

    #[test]
    fn a_storm_of_more_than_two_windows_escalates() {
        let mut script = hosts(200);
        // Each host once: none of them crashes in a loop, and the storm goes on all the same.
        for n in 0..40 {
            script += &format!("{} occur h{n} spl process_restarted 0\n", 10 + n * 35);
        }
        let fleet = run(policy(), &script);
        let log = fleet.log();
        assert!(log.contains("80 opened sev2 restart_storm fleet/restart_storm/spl#1"), "{log}");
        assert!(log.contains("1235 changed sev1 restart_storm fleet/restart_storm/spl"), "{log}");
        assert!(!log.contains("665 changed"), "{log}");
        let why = &newest(&fleet, "fleet/restart_storm/spl").timeline;
        assert!(why.iter().any(|line| line.text.contains("more than two windows")), "{why:?}");
    }

    #[test]
    fn a_crash_loop_within_a_storm_of_many_hosts_is_sev1() {
        let mut script = hosts(3);
        for n in 0..12 {
            script += &format!("{} occur h0 spl process_restarted 0\n", 10 + n * 60);
        }
        script += "15 occur h1 spl process_restarted 0\n20 occur h2 spl process_restarted 0\n";
        let mut lines: Vec<&str> = script.lines().collect();
        lines.sort_by_key(|line| line.split(' ').next().unwrap().parse::<u64>().unwrap());
        let fleet = run(policy(), &lines.join("\n"));
        let storm = newest(&fleet, "fleet/restart_storm/spl");
        assert_eq!(storm.severity, Severity::Sev1, "{}", fleet.log());
    }
}

mod locks {
    use super::*;

    #[test]
    fn a_lock_that_lasts_is_worse_on_one_host_and_on_many() {
        check(
            "0 connect a b c d
             0 open a spl /a.db sqlite_lock_held
             100 open b spl /b.db sqlite_lock_held
             100 open c spl /b.db lock_contention
             100 open d spl /b.db lock_contention
             1799 end
             1900 end
             2000 clear a spl /a.db sqlite_lock_held
             2001 clear b spl /b.db sqlite_lock_held
             3000 end",
            "0 opened sev3 sqlite_lock_held host/a/lock/spl//a.db#1
             60 page trigger sev3 sqlite_lock_held host/a/lock/spl//a.db
             100 opened sev3 sqlite_lock_held host/b/lock/spl//b.db#1
             100 opened sev3 lock_contention host/c/lock/spl//b.db#1
             100 opened sev3 lock_contention_fleet fleet/lock/spl/b.db#1
             100 folded host/b/lock/spl//b.db into fleet/lock/spl/b.db
             100 folded host/c/lock/spl//b.db into fleet/lock/spl/b.db
             160 page trigger sev3 lock_contention_fleet fleet/lock/spl/b.db
             1800 changed sev2 sqlite_lock_held host/a/lock/spl//a.db
             1800 page trigger sev2 sqlite_lock_held host/a/lock/spl//a.db
             1900 changed sev2 lock_contention_fleet fleet/lock/spl/b.db
             1900 page trigger sev2 lock_contention_fleet fleet/lock/spl/b.db
             2000 recovering host/a/lock/spl//a.db
             2001 recovering fleet/lock/spl/b.db
             2900 resolved host/a/lock/spl//a.db
             2900 page resolve sev2 sqlite_lock_held host/a/lock/spl//a.db
             2901 resolved fleet/lock/spl/b.db
             2901 page resolve sev2 lock_contention_fleet fleet/lock/spl/b.db
             2901 opened sev2 lock_contention host/c/lock/spl//b.db#2
             2901 opened sev2 lock_contention host/d/lock/spl//b.db#1
             2911 page trigger sev2 lock_contention host/c/lock/spl//b.db
             2911 page trigger sev2 lock_contention host/d/lock/spl//b.db",
        );
    }

    #[test]
    fn a_lock_contended_on_twice_as_many_hosts_is_sev2_and_on_one_less_is_not() {
        for (n, severity) in [(5, Severity::Sev3), (6, Severity::Sev2)] {
            let hosts = (0..n).map(|n| format!("0 connect h{n}\n")).collect::<String>();
            let locks = (0..n).map(|n| format!("1 open h{n} spl /a.db lock_contention\n")).collect::<String>();
            let fleet = run(policy(), &(hosts + &locks));
            assert_eq!(newest(&fleet, "fleet/lock/spl/a.db").severity, severity, "{}", fleet.log());
        }
    }

    #[test]
    fn a_lock_that_is_free_in_time_stays_what_it_was_and_leaves_no_timer() {
        let fleet = run(
            policy(),
            "0 connect a
             0 open a spl /a.db sqlite_lock_held
             1799 clear a spl /a.db sqlite_lock_held
             4000 end",
        );
        assert!(!fleet.log().contains("sev2"), "{}", fleet.log());
        assert_eq!(fleet.machine.state().timers().count(), 0);
    }

    /// Each of them is sev3 alone; the fifth makes all of them worse, also those that were told before.
    #[test]
    fn many_locks_of_one_service_on_one_host_are_worse_and_of_several_services_are_not() {
        let open = |service: &str, n: u32| format!("{n} open a {service} /{n}.db lock_contention\n");
        let of =
            |services: [&str; 5]| -> String { (0..5).zip(services).map(|(n, service)| open(service, n)).collect() };
        let fleet = run(policy(), &("0 connect a\n".to_owned() + &of(["spl"; 5])));
        for n in 0..5 {
            let lock = newest(&fleet, &format!("host/a/lock/spl//{n}.db"));
            assert_eq!(lock.severity, Severity::Sev2, "{n}: {}", fleet.log());
        }
        let title = &newest(&fleet, "host/a/lock/spl//4.db").why;
        assert!(title.contains("many locks of the service are contended there at once"), "{title}");
        let fleet = run(policy(), &("0 connect a\n".to_owned() + &of(["spl", "spl", "spl", "spl", "dba"])));
        assert!(!fleet.log().contains("sev2"), "{}", fleet.log());
        // The same file, found contended and held, is one; on another host is another matter.
        let script = "0 connect a b\n".to_owned() + &of(["spl"; 5]).replacen("0 open a", "0 open b", 1);
        let fleet = run(policy(), &(script + "9 open a spl /1.db sqlite_lock_held\n"));
        assert!(!fleet.log().contains("sev2"), "{}", fleet.log());
    }

    #[test]
    fn many_repositories_locked_within_ten_minutes_on_one_host_are_worse() {
        let locked = |every: u64| {
            let mut fleet = Fleet::new(policy());
            fleet.run_line("0 connect a");
            for n in 0..5u64 {
                fleet.run_line(&format!("{} end", n * every));
                let finding = Finding::new(key("spl", &format!("/repo{n}"), Reason::RepoLocked), "locked");
                fleet.event(&agent("a"), FindingEvent::Occurred(finding), Duration::ZERO);
            }
            fleet
        };
        let fleet = locked(100);
        for n in 0..5 {
            let incident = newest(&fleet, &format!("host/a/repo_locked/spl//repo{n}"));
            assert_eq!(incident.severity, Severity::Sev2, "{n}: {}", fleet.log());
        }
        assert!(!locked(200).log().contains("sev2"), "the first is 800 s old when the fifth comes");
    }

    #[test]
    fn a_lock_on_one_host_is_worse_while_its_service_restarts_again_and_again() {
        let mut script = "0 connect a\n0 open a spl /a.db sqlite_lock_held\n".to_owned();
        (1..=5).for_each(|n| script += &format!("{n} occur a spl process_restarted 0\n"));
        let fleet = run(policy(), &script);
        let lock = newest(&fleet, "host/a/lock/spl//a.db");
        assert_eq!(lock.severity, Severity::Sev2, "{}", fleet.log());
    }
}

mod kills {
    use super::*;

    #[test]
    fn kills_of_one_service_on_three_hosts_are_one_page_that_names_it() {
        let fleet = check(
            "0 connect a b c d
             10 occur a spl oom_kill 0
             12 occur b spl oom_kill 0
             15 occur c spl oom_kill 0
             16 open d spl x process_down
             17 occur d spl oom_kill 0
             1000 end",
            "10 opened sev2 oom_kill host/a/service/spl#1
             10 recovering host/a/service/spl
             12 opened sev2 oom_kill host/b/service/spl#1
             12 recovering host/b/service/spl
             15 opened sev2 oom_storm fleet/oom_storm/spl#1
             15 folded host/a/service/spl into fleet/oom_storm/spl
             15 folded host/b/service/spl into fleet/oom_storm/spl
             16 opened sev2 process_down host/d/service/spl#1
             17 folded host/d/service/spl into fleet/oom_storm/spl
             25 page trigger sev2 oom_storm fleet/oom_storm/spl",
        );
        let page = &newest(&fleet, "fleet/oom_storm/spl");
        assert!(page.title.starts_with("spl was OOM-killed 4 times on 4 hosts"), "{}", page.title);
    }

    #[test]
    fn different_services_on_three_hosts_are_one_storm_and_two_hosts_are_none() {
        let fleet = run(
            policy(),
            "0 connect a b c
             10 occur a spl oom_kill 0
             11 occur b dba oom_kill 0
             12 occur c host oom_kill 0
             30 end",
        );
        let storm = newest(&fleet, "fleet/oom_storm");
        assert!(storm.title.contains("3 OOM kills on 3 hosts within 2 s (dba, spl, unwatched processes)"), "{storm:?}");
        let fleet = run(
            policy(),
            "0 connect a b c
             10 occur a spl oom_kill 0
             11 occur b dba oom_kill 0
             12 occur b spl oom_kill 0
             30 end",
        );
        assert!(!fleet.log().contains("oom_storm"), "{}", fleet.log());
    }

    #[test]
    fn victims_that_nobody_watches_are_named_in_the_title_and_told_by_host() {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a b c d\n10 end");
        for (host, comm) in [("a", "glutton"), ("b", "python3"), ("c", "glutton"), ("d", "glutton")] {
            let words = format!("the kernel killed {comm} (pid 7): cgroup /batch reached its limit of 64 MiB");
            let evidence = Evidence::new().text("comm", comm).text("cgroup", "/batch");
            let finding = Finding::new(key("host", comm, Reason::OomKill), &words).evidence(evidence);
            fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
        }
        fleet.run_line("60 end");
        fleet.check_journal();
        let storm = newest(&fleet, "fleet/oom_storm/host");
        let title = "OOM kills of unwatched processes (glutton, python3) on ";
        assert!(storm.title.contains(title), "{}", storm.title);
        let page = fleet.pages().map(|(_, page)| page).find(|page| page.cause_key.starts_with("fleet/")).unwrap();
        assert!(page.title.contains(title) && page.services.is_empty(), "{page:#?}");
        assert_eq!(page.details.first().map(String::as_str), Some("killed: 3 × glutton, 1 × python3"), "{page:#?}");
        let told = |host: &str| page.details.iter().any(|line| line.starts_with(&format!("{host} at ")));
        assert!(["a", "b", "c", "d"].into_iter().all(told), "{:#?}", page.details);
        assert!(page.details.iter().any(|line| line.contains("/batch reached its limit of 64 MiB")), "{page:#?}");
        // Incidents say the same, and which services they are about: of no service, none.
        assert_eq!(storm.services_named().count(), 0, "{:?}", storm.services);
    }

    #[test]
    fn ten_kills_of_one_service_on_one_host_are_a_storm_and_nine_are_not() {
        let kills = |n: u64| (0..n).map(|n| format!("{} occur a spl oom_kill 0\n", n * 10)).collect::<String>();
        let fleet = run(policy(), &("0 connect a\n".to_owned() + &kills(9)));
        assert!(!fleet.log().contains("oom_storm"), "{}", fleet.log());
        let looks = detect::explain(fleet.machine.state(), fleet.now, &agent("a"));
        let look = looks.iter().find(|look| look.about == "fleet/oom_storm/spl").unwrap();
        assert_eq!(look.held_back_by, "below the threshold by 2 hosts or 1 occurrence", "{look:?}");
        let fleet = run(policy(), &("0 connect a\n".to_owned() + &kills(10)));
        assert!(fleet.log().contains("90 opened sev2 oom_storm fleet/oom_storm/spl#1"), "{}", fleet.log());
    }

    #[test]
    fn an_old_backlog_of_kills_is_no_storm_and_one_of_old_is_dated() {
        let fleet = run(
            policy(),
            "0 connect a b c
             10 occur a spl oom_kill 36000
             10 occur b spl oom_kill 20000
             10 occur c spl oom_kill 4000
             2000 end",
        );
        assert!(!fleet.log().contains("oom_storm"), "{}", fleet.log());
        let fleet = run(
            policy(),
            "0 connect a b c
             10 occur a spl oom_kill 7200
             10 occur b spl oom_kill 7190
             10 occur c spl oom_kill 7180
             30 end",
        );
        let log = fleet.log();
        assert!(log.contains("20 page trigger sev2 oom_storm fleet/oom_storm/spl late 7180"), "{log}");
    }

    #[test]
    fn restarts_after_kills_are_the_kills_symptom() {
        let mut script = "0 connect a b c\n".to_owned();
        for (n, host) in ["a", "b", "c"].iter().enumerate() {
            script += &format!("{} occur {host} spl process_restarted 0 sha256=aaaa\n", 10 + n);
        }
        for (n, host) in ["a", "b", "c"].iter().enumerate() {
            script += &format!("{} occur {host} spl oom_kill 0\n", 14 + n);
        }
        script += "60 end\n";
        let fleet = run(policy(), &script);
        let log = fleet.log();
        assert!(log.contains("folded fleet/restart_storm/spl/aaaa into fleet/oom_storm/spl"), "{log}");
        assert_eq!(log.matches("page trigger").count(), 1, "{log}");
    }
}

mod conditions {
    use super::*;

    fn open_on(n: u32, second: u64, what: &str) -> String {
        (0..n).map(|n| format!("{second} open h{n} {what}\n")).collect()
    }

    fn hosts(n: u32) -> String {
        (0..n).map(|n| format!("0 connect h{n}\n")).collect()
    }

    #[test]
    fn a_group_short_of_memory_is_one_page_that_names_it() {
        let script = with_label("zone=a", &["f1", "f2", "f3", "f4", "f5", "f6"])
            + &with_label("zone=b", &["b1", "b2", "b3", "b4"])
            + "10 open b1 host memory memory_critical
               11 open b2 host stalls memory_pressure
               12 open b3 host memory memory_critical
               100 clear b1 host memory memory_critical
               100 clear b2 host stalls memory_pressure
               100 clear b3 host memory memory_critical
               1200 end";
        let fleet = check(
            &script,
            "10 opened sev3 memory_critical host/b1/memory#1
             11 opened sev3 memory_pressure host/b2/memory#1
             12 opened sev2 reason_widespread fleet/reason/memory/zone=b#1
             12 folded host/b1/memory into fleet/reason/memory/zone=b
             12 folded host/b2/memory into fleet/reason/memory/zone=b
             22 page trigger sev2 reason_widespread fleet/reason/memory/zone=b
             100 recovering fleet/reason/memory/zone=b
             1000 resolved fleet/reason/memory/zone=b
             1000 page resolve sev2 reason_widespread fleet/reason/memory/zone=b",
        );
        let incident = newest(&fleet, "fleet/reason/memory/zone=b");
        let told =
            "3 of 4 hosts of zone=b are short of memory (memory_critical on 2, memory_pressure on 1): b1, b2, b3";
        assert_eq!(incident.title, told);
    }

    #[test]
    fn below_the_share_of_a_group_or_the_count_of_the_fleet_each_host_is_its_own() {
        let script = with_label("zone=b", &["b1", "b2", "b3", "b4", "b5", "b6", "b7"])
            + "10 open b1 host memory memory_critical
               11 open b2 host memory memory_critical
               12 open b3 host memory memory_critical
               13 open b4 spl cgroup memory_pressure
               30 end";
        let fleet = run(policy(), &script);
        assert!(!fleet.log().contains("reason_widespread"), "{}", fleet.log());
    }

    #[test]
    fn ten_hosts_short_of_memory_are_the_fleets_matter() {
        // In ten subnets, so that nothing narrower fits.
        let apart = (0..10).map(|n| format!("0 address h{n} 10.{n}.0.1\n")).collect::<String>();
        let script = apart + &hosts(40) + &open_on(10, 10, "host memory memory_critical") + "30 end\n";
        let fleet = run(policy(), &script);
        let incident = newest(&fleet, "fleet/reason/memory");
        assert!(incident.title.starts_with("10 of 40 hosts are short of memory"), "{}", incident.title);
    }

    #[test]
    fn overlapping_groups_tell_it_once() {
        let mut script = String::new();
        for n in 0..4 {
            script += &format!("0 label b{n} zone=b\n0 label b{n} role=db\n0 label b{n} tier=1\n0 connect b{n}\n");
        }
        script += "0 label c1 role=db\n0 connect c1\n";
        script += &with_label("tier=1", &["d1", "d2", "d3"]);
        for n in 0..4 {
            script += &format!("{} open b{n} host memory memory_critical\n", 10 + n);
        }
        script += "60 end\n";
        let fleet = run(policy(), &script);
        let log = fleet.log();
        assert_eq!(log.matches("opened sev2 reason_widespread").count(), 1, "{log}");
        assert!(log.contains("fleet/reason/memory/zone=b#1"), "{log}");
    }

    #[test]
    fn the_same_database_damaged_on_two_hosts_is_one_page() {
        let fleet = check(
            "0 connect a b c
             0 open a spl /v1/hub.db sqlite_corrupt
             20 open b spl /v2/hub.db sqlite_not_a_database
             30 open c spl /v3/other.db sqlite_corrupt
             40 clear b spl /v2/hub.db sqlite_not_a_database
             50 end",
            "0 opened sev1 sqlite_corrupt host/a/sqlite/spl//v1/hub.db#1
             0 page trigger sev1 sqlite_corrupt host/a/sqlite/spl//v1/hub.db
             20 opened sev1 corruption_spread fleet/corruption/spl/hub.db#1
             20 page trigger sev1 corruption_spread fleet/corruption/spl/hub.db
             20 merged host/a/sqlite/spl//v1/hub.db into fleet/corruption/spl/hub.db
             20 page trigger sev1 corruption_spread fleet/corruption/spl/hub.db
             20 cancelled
             30 opened sev1 sqlite_corrupt host/c/sqlite/spl//v3/other.db#1
             30 page trigger sev1 sqlite_corrupt host/c/sqlite/spl//v3/other.db
             40 recovering fleet/corruption/spl/hub.db
             40 opened sev1 sqlite_corrupt host/a/sqlite/spl//v1/hub.db#2
             40 page trigger sev1 sqlite_corrupt host/a/sqlite/spl//v1/hub.db",
        );
        let why = &newest(&fleet, "fleet/corruption/spl/hub.db").why;
        assert!(why.contains("at least 2 hosts"), "{why}");
    }

    /// A deploy of a service on a host, `ago` before now.
    fn deploy(fleet: &mut Fleet, host: &str, service: &str, ago: u64) {
        let evidence = Evidence::new().text("what", "deploy").text("old", "1.0").text("new", "1.1");
        let finding =
            Finding::new(key(service, "/usr/bin/it", Reason::Change), "another build runs").evidence(evidence);
        fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::from_secs(ago));
    }

    #[test]
    fn damage_soon_after_an_upgrade_of_its_service_is_told_as_spreading_on_the_first_host() {
        let damaged = |service: &str, ago: u64| {
            let mut fleet = Fleet::new(policy());
            fleet.run_line("0 connect a b c");
            deploy(&mut fleet, "a", service, ago);
            fleet.run_line("10 open a spl /v1/hub.db sqlite_corrupt");
            fleet.run_line("20 end");
            fleet
        };
        let fleet = damaged("spl", 600);
        let spread = newest(&fleet, "fleet/corruption/spl/hub.db");
        let told =
            "hub.db of spl is damaged on 1 host, 10 min after a change on a: spl runs a new build 1.1, it was 1.0: a";
        assert_eq!(spread.title, told);
        let opened: Vec<String> =
            fleet.log().lines().filter(|line| line.contains(" opened ")).map(str::to_owned).collect();
        assert_eq!(opened, ["10 opened sev1 corruption_spread fleet/corruption/spl/hub.db#1"], "{}", fleet.log());
        // Of another service, or too long ago, it explains nothing.
        for fleet in [damaged("dba", 600), damaged("spl", 3600)] {
            assert!(!fleet.log().contains("corruption_spread"), "{}", fleet.log());
        }
    }

    #[test]
    fn the_same_probe_blind_on_five_hosts_is_sev3_and_on_four_nothing() {
        let fleet = run(policy(), &(hosts(20) + &open_on(4, 10, "spl /run/spl.pid probe_blind") + "90 end\n"));
        assert_eq!(fleet.log(), "");
        let fleet = run(policy(), &(hosts(20) + &open_on(5, 10, "spl /run/spl.pid probe_blind") + "90 end\n"));
        let log = fleet.log();
        assert!(log.contains("10 opened sev3 probe_blind fleet/probe_blind/pid_file/spl#1"), "{log}");
        assert!(log.contains("70 page trigger sev3 probe_blind fleet/probe_blind/pid_file/spl"), "{log}");
    }
}

mod reasons {
    use super::*;

    fn told_by(n: u32, second: u64, service: &str, reason: &str) -> String {
        (0..n).map(|n| format!("{second} occur h{n} {service} {reason} 0\n")).collect()
    }

    fn hosts(n: u32) -> String {
        (0..n).map(|n| format!("0 connect h{n}\n")).collect()
    }

    #[test]
    fn each_widespread_reason_is_sev2_and_one_page() {
        for reason in ["provider_rate_limited", "network_error", "timeout", "repo_locked"] {
            let fleet = run(policy(), &(hosts(40) + &told_by(5, 10, "spl", reason) + "60 end\n"));
            let log = fleet.log();
            let key = format!("fleet/reason/{reason}");
            assert!(log.contains(&format!("10 opened sev2 reason_widespread {key}#1")), "{reason}: {log}");
            assert_eq!(log.matches("page trigger").count(), 1, "{reason}: {log}");
            assert_eq!(log.matches(&format!("into {key}")).count(), 4, "{reason}: {log}");
        }
    }

    /// Five hosts are many; fleet-wide is a share of all as well.
    #[test]
    fn installs_that_fail_are_sev2_when_a_share_of_the_fleet_has_them() {
        for (failing, all, severity) in [(5, 40, "sev3"), (11, 40, "sev3"), (12, 40, "sev2"), (5, 16, "sev2")] {
            let fleet = run(policy(), &(hosts(all) + &told_by(failing, 10, "spl", "install_failed") + "90 end\n"));
            let log = fleet.log();
            let newest = newest(&fleet, "fleet/reason/install_failed");
            assert_eq!(newest.severity.to_string(), severity, "{failing} of {all}: {log}");
            assert_eq!(log.matches("page trigger").count(), 1, "{failing} of {all}: {log}");
        }
    }

    #[test]
    fn four_hosts_are_not_many_and_eight_sources_are() {
        let fleet = run(policy(), &(hosts(40) + &told_by(4, 10, "spl", "timeout") + "60 end\n"));
        assert!(!fleet.log().contains("reason_widespread"), "{}", fleet.log());
        let sources = (0..8).map(|n| format!("10 occur h0 job{n} timeout 0\n")).collect::<String>();
        let fleet = run(policy(), &(hosts(40) + &sources + "60 end\n"));
        assert!(fleet.log().contains("10 opened sev2 reason_widespread fleet/reason/timeout#1"), "{}", fleet.log());
    }

    #[test]
    fn a_backlog_is_counted_by_when_it_happened() {
        let script = (0..8).map(|n| format!("10 occur h{n} spl timeout {}\n", 700 * (n + 1))).collect::<String>();
        let fleet = run(policy(), &(hosts(8) + &script + "60 end\n"));
        assert!(!fleet.log().contains("reason_widespread"), "{}", fleet.log());
    }

    #[test]
    fn errors_that_stay_are_sev1_when_global_and_prolonged() {
        for reason in ["permanent_error", "retry_budget_exceeded"] {
            let mut script = hosts(10);
            for round in 0..5 {
                script += &told_by(6, 10 + round * 450, "spl", reason);
            }
            let fleet = run(policy(), &script);
            let (log, key) = (fleet.log(), format!("fleet/reason/{reason}"));
            assert!(log.contains(&format!("1810 changed sev1 reason_widespread {key}")), "{reason}: {log}");
            // As long, on the same number of hosts, of a fleet many times as large: not global.
            let fleet = run(policy(), &script.replacen("0 connect h0\n", &hosts(100), 1));
            assert!(!fleet.log().contains("sev1"), "{reason}: {}", fleet.log());
        }
    }

    #[test]
    fn a_policy_decides_over_the_matrix() {
        let mut quiet = policy();
        quiet.severities.insert(Reason::Timeout, Severity::Sev4);
        let fleet = run(quiet, &(hosts(40) + &told_by(9, 10, "spl", "timeout") + "60 end\n"));
        assert_eq!(fleet.log(), "");
        let mut loud = policy();
        loud.severities.insert(Reason::ReasonWidespread, Severity::Sev3);
        let fleet = run(loud, &(hosts(40) + &told_by(5, 10, "spl", "timeout") + "60 end\n"));
        assert!(fleet.log().contains("opened sev3 reason_widespread"), "{}", fleet.log());
    }
}

/// Why it paged names the line of the matrix that made it so bad.
#[test]
fn why_quotes_the_line_of_the_matrix() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect a");
    let finding = Finding::new(key("spl", "oom", Reason::OomKill), "killed").evidence(Evidence::new());
    fleet.event(&agent("a"), FindingEvent::Occurred(finding), Duration::ZERO);
    let why = &newest(&fleet, "host/a/service/spl").why;
    assert!(why.ends_with("sev2, since the victim belongs to a watched service"), "{why}");
}

mod matrix {
    use super::*;
    use muster_coordinator_core::severity::{RAISES, Raise, When};

    fn lines(hosts: u32, what: &str) -> String {
        (0..hosts).map(|n| what.replace("{n}", &n.to_string())).collect::<Vec<_>>().join("\n") + "\n"
    }

    fn storm_on(host: &str) -> String {
        (1..=5).map(|n| format!("{n} occur {host} spl process_restarted 0\n")).collect()
    }

    /// What makes each line of the matrix hold, and which incident tells of it.
    fn scenario(line: &Raise) -> (String, String) {
        use Reason as R;
        let connect = lines(12, "0 connect h{n}");
        let (script, cause) = match (line.reason, line.when) {
            (R::MemoryCritical, [When::WatchedOom]) => (
                "1 open h0 host memory memory_critical\n2 occur h0 spl oom_kill 0".to_owned(),
                "host/h0/memory".to_owned(),
            ),
            (R::OomKill, [When::WatchedService]) => {
                ("1 occur h0 spl oom_kill 0".to_owned(), "host/h0/service/spl".to_owned())
            }
            (R::LockContention | R::SqliteLockHeld, [When::Sustained]) => {
                (format!("1 open h0 spl /a.db {}\n1802 end", line.reason), "host/h0/lock/spl//a.db".to_owned())
            }
            (R::LockContention | R::SqliteLockHeld, [When::WithRestartStorm]) => (
                format!("0 open h0 spl /a.db {}\n{}", line.reason, storm_on("h0")),
                "host/h0/lock/spl//a.db".to_owned(),
            ),
            (R::LockContention | R::SqliteLockHeld, [When::ManySubjects]) => {
                (lines(5, &format!("1 open h0 spl /{{n}}.db {}", line.reason)), "host/h0/lock/spl//0.db".to_owned())
            }
            (R::RepoLocked, [When::ManySubjects]) => (String::new(), "host/h0/repo_locked/spl/r0".to_owned()),
            (R::InstallFailed, [When::FleetWide]) => {
                (lines(5, "1 occur h{n} spl install_failed 0"), "fleet/reason/install_failed".to_owned())
            }
            (R::LockContentionFleet, [When::TwiceTheHosts]) => {
                (lines(6, "1 open h{n} spl /a.db lock_contention"), "fleet/lock/spl/a.db".to_owned())
            }
            (R::LockContentionFleet, [When::WithRestartStorm]) => {
                (lines(3, "0 open h{n} spl /a.db lock_contention") + &storm_on("h1"), "fleet/lock/spl/a.db".to_owned())
            }
            (R::LockContentionFleet, [When::Sustained]) => {
                (lines(3, "1 open h{n} spl /a.db lock_contention") + "1802 end", "fleet/lock/spl/a.db".to_owned())
            }
            (R::RestartStorm, [When::NoRecovery]) => (
                (0..6).map(|n| format!("{} occur h0 spl process_restarted 0\n", 1 + n * 125)).collect(),
                "host/h0/service/spl".to_owned(),
            ),
            (R::RestartStorm, [When::TwoWindows]) => (
                (0..12).map(|n| format!("{} occur h{n} spl process_restarted 0\n", 1 + n * 125)).collect(),
                "fleet/restart_storm/spl".to_owned(),
            ),
            (R::RepoLocked, [When::WithRestartStorm]) => {
                (format!("0 occur h0 spl repo_locked 0\n{}", storm_on("h0")), "host/h0/repo_locked/spl/it".to_owned())
            }
            (reason, [When::Widespread]) if reason != R::ProbeBlind => {
                (lines(5, &format!("1 occur h{{n}} spl {reason} 0")), format!("fleet/reason/{reason}"))
            }
            (R::ProbeBlind, [When::Widespread]) => {
                (lines(5, "1 open h{n} spl /run/spl.pid probe_blind"), "fleet/probe_blind/pid_file/spl".to_owned())
            }
            (reason, [When::FleetWide, When::Prolonged]) => (
                (0..5).map(|round| lines(6, &format!("{} occur h{{n}} spl {reason} 0", 1 + round * 450))).collect(),
                format!("fleet/reason/{reason}"),
            ),
            (reason, [When::UnhealthyAfter]) => (
                format!("1 occur h0 spl {reason} 0\n60 open h0 spl /run/spl.pid process_down"),
                "host/h0/service/spl".to_owned(),
            ),
            (_, [When::RollbackFailed]) => (String::new(), "host/h0/service/spl".to_owned()),
            other => panic!("no scenario makes {other:?} hold: write one"),
        };
        (connect + &script, cause)
    }

    /// No line of the matrix is there for nothing: what it asks for can happen, and makes the incident as bad as it says.
    #[test]
    fn each_line_has_a_scenario() {
        for line in RAISES {
            let (script, cause) = scenario(line);
            let mut fleet = run(policy(), &script);
            if line.when == [When::RollbackFailed] {
                let said = match line.reason {
                    Reason::UpdateFailed => Evidence::new().text("phase", "rollback"),
                    _ => Evidence::new().text("outcome", "failed"),
                };
                let finding = Finding::new(key("spl", "it", line.reason), "it failed").evidence(said);
                fleet.event(&agent("h0"), FindingEvent::Occurred(finding), Duration::ZERO);
            }
            for n in (0..5).filter(|_| line.reason == Reason::RepoLocked && line.when == [When::ManySubjects]) {
                let finding = Finding::new(key("spl", &format!("r{n}"), line.reason), "it is locked");
                fleet.event(&agent("h0"), FindingEvent::Occurred(finding), Duration::ZERO);
            }
            let incident = newest(&fleet, &cause);
            assert_eq!(incident.severity, line.severity, "{line:?}\n{}", fleet.log());
            let told = incident.timeline.iter().any(|told| told.text.contains(line.words));
            // What is told of many is that bad by itself.
            let by_itself = incident.reason.default_severity() >= line.severity;
            assert!(told || by_itself, "{line:?} is not quoted: {:#?}", incident.timeline);
        }
    }

    /// One lock on one of many hosts that each restarted once.
    #[test]
    fn a_storm_of_many_hosts_makes_the_lock_of_one_of_them_worse() {
        let script = lines(3, "0 connect h{n}")
            + "0 open h0 spl /a.db sqlite_lock_held\n"
            + &lines(3, "10 occur h{n} spl process_restarted 0");
        let fleet = run(policy(), &script);
        assert_eq!(newest(&fleet, "host/h0/lock/spl//a.db").severity, Severity::Sev2, "{}", fleet.log());
    }

    /// An unwatched process is less: nothing that anybody asked for is down.
    #[test]
    fn an_unwatched_victim_stays_sev3() {
        let fleet = run(policy(), "0 connect a\n1 occur a host oom_kill 0\n70 end");
        assert!(fleet.log().contains("61 page trigger sev3 oom_kill host/a/oom"), "{}", fleet.log());
    }
}

/// A storm that takes an outage in is an outage.
#[test]
fn what_explains_others_is_as_bad_as_the_worst_of_them() {
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect a b c d");
    let failed = |fleet: &mut Fleet, host: &str| {
        let said = Evidence::new().text("outcome", "failed");
        let finding = Finding::new(key("spl", "it", Reason::UpdateRollback), "the rollback failed").evidence(said);
        fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
    };
    for (n, host) in ["a", "b", "c"].iter().enumerate() {
        fleet.run_line(&format!("{} occur {host} spl process_restarted 0", 10 + n));
    }
    fleet.run_line("30 ack fleet/restart_storm/spl");
    failed(&mut fleet, "b");
    fleet.run_line("40 end");
    let log = fleet.log();
    assert!(log.contains("30 changed sev1 restart_storm fleet/restart_storm/spl"), "{log}");
    assert!(log.contains("30 page trigger sev1 restart_storm fleet/restart_storm/spl"), "{log}");
    // One that had an incident of its own, and joins with it.
    let mut fleet = Fleet::new(policy());
    fleet.run_line("0 connect a b c d");
    failed(&mut fleet, "a");
    for (n, host) in ["b", "c", "a"].iter().enumerate() {
        fleet.run_line(&format!("{} occur {host} spl process_restarted 0", 10 + n));
    }
    fleet.run_line("40 end");
    let storm = newest(&fleet, "fleet/restart_storm/spl");
    assert_eq!(storm.severity, Severity::Sev1, "{}", fleet.log());
    fleet.check_journal();
}

fn killed(fleet: &mut Fleet, second: u64, host: &str, pid: u64, since_boot_ms: u64) {
    fleet.run(&format!("{second} end"));
    let evidence =
        Evidence::new().count("pid", pid).with("since_boot_ms", muster_common::evidence::Value::Millis(since_boot_ms));
    let finding = Finding::new(key("host", "kernel", Reason::OomKill), "the kernel killed it").evidence(evidence);
    fleet.event(&agent(host), FindingEvent::Occurred(finding), Duration::ZERO);
}

/// Four agents in containers on one kernel read one line of its log.
#[test]
fn a_kill_of_one_kernel_counts_once_whoever_tells_it() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 boot a 1\n0 boot b 1\n0 boot c 1\n0 boot d 1\n0 boot e 2\n0 boot f 3\n0 connect a b c d e f");
    for (second, host) in [(10, "a"), (11, "b"), (12, "c"), (13, "d")] {
        killed(&mut fleet, second, host, 77, 5_000);
    }
    // The same pid at the same time since boot of other kernels.
    killed(&mut fleet, 20, "e", 77, 5_000);
    fleet.run("60 end");
    assert!(!fleet.log().contains("oom_storm"), "{}", fleet.log());
    killed(&mut fleet, 70, "f", 77, 5_000);
    assert!(fleet.log().contains("70 opened sev2 oom_storm"), "three kernels:\n{}", fleet.log());
    fleet.check_journal();

    // Different kills of one kernel count each.
    let mut fleet = Fleet::new(policy());
    fleet.run("0 boot a 1\n0 boot b 1\n0 boot c 1\n0 connect a b c");
    for (second, host) in [(10, "a"), (11, "b"), (12, "c")] {
        killed(&mut fleet, second, host, 77 + second, 5_000);
    }
    assert!(fleet.log().contains("12 opened sev2 oom_storm"), "{}", fleet.log());
    fleet.check_journal();
}
