//! Agents that know more than their coordinator: what has no name here is an incident all the same, and is over when its
//! agent says so.

use muster_common::finding::{Finding, FindingEvent, FindingKey, SubjectKey};
use muster_common::ids::ServiceName;
use muster_common::reason::{Reason, ReasonKind};
use muster_common::severity::Severity;
use muster_coordinator_core::entry::{Fact, SubjectState};
use muster_coordinator_core::policy::Policy;
use muster_tests::scenario::{Fleet, agent, key, policy};
use std::time::Duration;

fn service() -> ServiceName {
    key("spl", "/var/a", Reason::PortClosed).subject.service
}

fn foreign(probe: &str, reason: &str, kind: ReasonKind) -> FindingKey {
    FindingKey::foreign(service(), probe, "/var/a", reason, kind)
}

fn opens(fleet: &mut Fleet, probe: &str, reason: &str, severity: Severity) {
    let key = foreign(probe, reason, ReasonKind::Condition);
    let finding = Finding::new(key, &format!("{reason} as never before")).severity(severity);
    fleet.event(&agent("a"), FindingEvent::Opened(finding), Duration::ZERO);
}

fn titles(fleet: &Fleet) -> Vec<String> {
    let unresolved = fleet.machine.state().incidents().filter(|incident| incident.is_unresolved());
    unresolved.map(|incident| format!("{} {}", incident.severity, incident.title)).collect()
}

#[test]
fn each_is_told_under_its_own_name_and_severity() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a\n1 end");
    opens(&mut fleet, "sqlite", "sqlite_haunted", Severity::Sev2);
    opens(&mut fleet, "sqlite", "sqlite_cursed", Severity::Sev3);
    let finding = Finding::new(foreign("seance", "ghost_seen", ReasonKind::Occurrence), "one was seen");
    fleet.event(&agent("a"), FindingEvent::Occurred(finding), Duration::ZERO);
    fleet.run("100 end");
    let expected = [
        "sev3 spl on a, /var/a (sqlite/sqlite_cursed): sqlite_cursed as never before",
        "sev2 spl on a, /var/a (sqlite/sqlite_haunted): sqlite_haunted as never before",
        "sev3 spl on a, /var/a (seance/ghost_seen): one was seen",
    ];
    assert_eq!(titles(&fleet), expected, "{}", fleet.log());
    assert_eq!(fleet.log().matches("page trigger").count(), 3, "{}", fleet.log());
    let cleared = FindingEvent::Cleared {
        key: foreign("sqlite", "sqlite_haunted", ReasonKind::Condition),
        summary: "gone".to_owned(),
        evidence: Default::default(),
    };
    fleet.event(&agent("a"), cleared, Duration::ZERO);
    fleet.run("2000 end");
    assert_eq!(titles(&fleet), expected[..1], "{}", fleet.log());
    fleet.check_journal();

    // One severity for all of them is the operator's to set.
    let mut quiet: Policy = policy();
    quiet.severities.insert(Reason::UnknownCondition, Severity::Sev4);
    let mut fleet = Fleet::new(quiet);
    fleet.run("0 connect a\n1 end");
    opens(&mut fleet, "port", "port_haunted", Severity::Sev1);
    fleet.run("100 end");
    assert_eq!(fleet.log(), "");
}

/// One failure of a service, told by a reason that is not known here and by one that is: one incident, one page.
#[test]
fn what_a_newer_agent_tells_of_a_service_is_part_of_its_own_incident() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a\n1 end");
    let known = FindingKey::foreign(service(), "pid_file", "/run/spl.pid", "process_gone", ReasonKind::Condition);
    let finding = Finding::new(known, "pid 7 is gone").severity(Severity::Sev2);
    fleet.event(&agent("a"), FindingEvent::Opened(finding), Duration::ZERO);
    fleet.run("2 open a spl 127.0.0.1:1 port_closed\n100 end");
    let open: Vec<_> = fleet.machine.state().incidents().map(|incident| incident.key.cause.as_str()).collect();
    assert_eq!(open, ["host/a/service/spl"], "{}", fleet.log());
    assert_eq!(fleet.log().matches("page trigger").count(), 1, "{}", fleet.log());
    // A database's trouble, and a host's, stay matters of their own.
    opens(&mut fleet, "sqlite", "sqlite_haunted", Severity::Sev3);
    let host = FindingKey::foreign(ServiceName::host(), "process", "init", "init_gone", ReasonKind::Condition);
    fleet.event(&agent("a"), FindingEvent::Opened(Finding::new(host, "gone")), Duration::ZERO);
    fleet.run("200 end");
    assert_eq!(titles(&fleet).len(), 3, "{}", fleet.log());
    fleet.check_journal();
}

/// What a probe that is not known cannot judge stays; what it judges well is over.
#[test]
fn a_resync_compares_the_agents_own_words() {
    for probe in ["port", "seance"] {
        let mut fleet = Fleet::new(policy());
        fleet.run("0 connect a\n1 end");
        opens(&mut fleet, probe, "port_haunted", Severity::Sev2);
        let subject = match probe.parse() {
            Ok(known) => SubjectKey::new(service(), known, "/var/a"),
            Err(_) => SubjectKey::foreign(service(), probe, "/var/a"),
        };
        let mut resync = |ok: Option<bool>| {
            let subjects = vec![SubjectState { subject: subject.clone(), ok, open: Vec::new() }];
            fleet.feed(Fact::OpenSetReceived { agent: agent("a"), subjects });
            fleet.machine.state().open_findings().count()
        };
        assert_eq!(resync(None), 1, "{probe}: absence is no recovery");
        assert_eq!(resync(Some(true)), 0, "{probe}");
        fleet.check_journal();
    }
}

/// The coordinator was upgraded and knows the name now: what was kept under a stand-in goes when its agent tells of it again.
#[test]
fn an_upgrade_of_the_coordinator_gives_it_its_name() {
    let mut fleet = Fleet::new(policy());
    fleet.run("0 connect a\n1 end");
    let known = key("spl", "/var/a", Reason::PortClosed);
    // As a version kept it that did not know this reason.
    let mut kept = known.clone();
    kept.reason = Reason::UnknownCondition;
    kept.subject.subject += " (port/port_closed)";
    assert_eq!(kept.digest_term(), known.digest_term(), "until then both sides agree");
    fleet.event(&agent("a"), FindingEvent::Opened(Finding::new(kept, "closed")), Duration::ZERO);
    let finding = Finding::new(known.clone(), "still closed");
    fleet.event(&agent("a"), FindingEvent::Updated(finding.clone()), Duration::ZERO);
    let digest = |fleet: &Fleet| fleet.machine.state().agent(&agent("a")).map(|record| record.digest);
    assert_ne!(digest(&fleet), Some(known.digest_term()), "so that a resync is asked for");
    let subjects = vec![SubjectState { subject: known.subject.clone(), ok: Some(false), open: vec![finding] }];
    fleet.feed(Fact::OpenSetReceived { agent: agent("a"), subjects });
    let open: Vec<_> = fleet.machine.state().open_findings().map(|(_, open)| open.finding.key.clone()).collect();
    assert_eq!(open, std::slice::from_ref(&known));
    assert_eq!(digest(&fleet), Some(known.digest_term()));
    fleet.check_journal();
}
