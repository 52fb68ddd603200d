//! Scenarios as data, then random orders of events against the invariants.

use super::*;
use muster_common::ids::{CoordinatorId, SpoolId};
use muster_common::spool::{EntryHash, Position};
use muster_common::time::Timestamp;
use proptest::prelude::*;

const BEAT_MS: u64 = 5_000;

fn spool(n: u8) -> SpoolId {
    SpoolId(uuid::Uuid::from_bytes([n; 16]))
}

fn view(head: u64) -> SpoolView {
    SpoolView { spool: spool(1), head, oldest: 1, evicted: 0, stored: 0 }
}

fn epoch(number: u64) -> Epoch {
    Epoch { number, coordinator: CoordinatorId::new("coord-a").unwrap() }
}

fn welcome(number: u64, resume: u64) -> Message {
    let position = |sequence| Position { spool: spool(1), sequence, hash: EntryHash([7; 16]) };
    Message::Welcome(Box::new(Welcome {
        fleet: "prod".into(),
        epoch: epoch(number),
        proof: vec![1],
        heartbeat_interval_ms: BEAT_MS,
        resume: (resume > 0).then(|| position(resume)),
        endpoints: vec!["https://c:7420".into(), "https://a:7420".into()],
    }))
}

fn entry(sequence: u64) -> Entry {
    let boot = muster_common::ids::BootId(uuid::Uuid::from_bytes([9; 16]));
    Entry {
        sequence,
        previous_hash: EntryHash::ZERO,
        hash: EntryHash::ZERO,
        body: vec![1],
        written: Written { boot, boottime_ms: 0, wall: Timestamp::UNIX_EPOCH },
    }
}

fn session(head: u64) -> Session {
    let endpoints = vec!["https://a:7420".into(), "https://b:7420".into()];
    Session::new(FleetName::new("prod").unwrap(), endpoints, Some(epoch(3)), view(head))
}

/// A session that is streaming on stream 1 since 0 ms with nothing acknowledged.
fn streaming(head: u64) -> (Session, Vec<Output>) {
    let mut session = session(head);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    let out = session.handle(0, 0, Input::Received(1, welcome(3, 0)));
    (session, out)
}

fn connect(stream: u64, endpoint: &str) -> Output {
    Output::Connect { stream, endpoint: format!("https://{endpoint}:7420") }
}

fn ack(stored: u64, replicated: u64) -> Input {
    Input::Received(1, Message::Ack { spool: spool(1), stored, replicated })
}

fn entries(range: std::ops::RangeInclusive<u64>) -> Input {
    Input::Spool(1, SpoolAnswer::Entries(range.map(entry).collect()))
}

/// Runs steps of (time, input, expected outputs).
fn check(session: &mut Session, steps: Vec<(u64, Input, Vec<Output>)>) {
    for (index, (at_ms, input, expected)) in steps.into_iter().enumerate() {
        let shown = format!("step {index} at {at_ms} ms: {input:?}");
        assert_eq!(session.handle(at_ms, 0, input), expected, "{shown}");
    }
}

#[test]
fn connects_greets_settles_and_streams() {
    let resume = Position { spool: spool(1), sequence: 2, hash: EntryHash([7; 16]) };
    let mut session = session(4);
    check(
        &mut session,
        vec![
            (0, Input::Tick, vec![connect(1, "a")]),
            (1, Input::Connected(1), vec![Output::SendHello]),
            // A higher epoch is made durable before the position is even looked at.
            (2, Input::Received(1, welcome(4, 2)), vec![Output::StoreEpoch { epoch: epoch(4), proof: vec![1] }]),
            (3, Input::Received(1, Message::Ping { id: 9 }), vec![Output::SendPong { id: 9 }]),
            (4, Input::Spool(1, SpoolAnswer::EpochIs(epoch(4))), vec![Output::CompareResume(resume)]),
            (
                5,
                Input::Spool(1, SpoolAnswer::ResumeAgrees),
                vec![
                    Output::SendHeartbeat { sequence: 1 },
                    Output::StoreAck { spool: spool(1), stored: 2, replicated: 0 },
                    Output::ReadEntries { after: 2, up_to: 4 },
                ],
            ),
            (6, entries(3..=4), vec![Output::SendEntries { spool: spool(1), entries: vec![entry(3), entry(4)] }]),
            (7, ack(4, 3), vec![Output::StoreAck { spool: spool(1), stored: 4, replicated: 3 }]),
            (8, ack(3, 3), vec![]),
            (5 + BEAT_MS, Input::Tick, vec![Output::SendHeartbeat { sequence: 2 }]),
            (6 + BEAT_MS, Input::Shutdown(false), {
                vec![Output::SendGoodbye(Goodbye::Shutdown), Output::Close(End::Unavailable), Output::Stopped]
            }),
        ],
    );
    assert_eq!(session.deadline_ms(), None);
}

#[test]
fn freezes_are_kept_after_the_welcome_and_end_the_stream_before_it() {
    let freeze = |id: &str| crate::freeze::Freeze {
        id: id.to_owned(),
        reason: "upgrade".to_owned(),
        created_by: "ada".to_owned(),
        expires: None,
    };
    let told = |ids: &[&str]| Input::Received(1, Message::Freezes(ids.iter().map(|id| freeze(id)).collect()));
    let keep = |ids: &[&str]| vec![Output::StoreFreezes(ids.iter().map(|id| freeze(id)).collect())];
    let (mut session, _) = streaming(0);
    // All of them each time: one that is not told of any more is lifted.
    check(
        &mut session,
        vec![
            (1, told(&["FRZ-1"]), keep(&["FRZ-1"])),
            (2, told(&["FRZ-1", "FRZ-2"]), keep(&["FRZ-1", "FRZ-2"])),
            (3, told(&[]), keep(&[])),
            // Of a stream that is over: nothing.
            (4, Input::Received(7, Message::Freezes(vec![freeze("FRZ-9")])), vec![]),
        ],
    );
    assert_eq!(session.phase(), Phase::Streaming);
    check(&mut settling(), vec![(1, told(&["FRZ-1"]), keep(&["FRZ-1"]))]);
    let mut early = self::session(0);
    early.handle(0, 0, Input::Tick);
    early.handle(0, 0, Input::Connected(1));
    let out = early.handle(1, 0, told(&["FRZ-1"]));
    assert!(out.contains(&Output::Close(End::Protocol)), "{out:?}");
    assert!(!out.iter().any(|output| matches!(output, Output::StoreFreezes(_))), "{out:?}");
}

/// Welcomed, its position not compared yet.
fn settling() -> Session {
    let mut session = session(4);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    session.handle(0, 0, Input::Received(1, welcome(3, 4)));
    session
}

#[test]
fn one_round_of_standbys_at_once_then_a_wait() {
    let mut session = session(0);
    check(
        &mut session,
        vec![
            (0, Input::Tick, vec![connect(1, "a")]),
            (1, Input::Ended(1, End::NotPrimary), vec![connect(2, "b")]),
            (2, Input::Ended(1, End::NotPrimary), vec![]),
            (3, Input::Ended(2, End::NotPrimary), vec![]),
        ],
    );
    assert_eq!((session.phase(), session.attempt()), (Phase::Idle, 1));
}

#[test]
fn a_lower_epoch_is_refused_and_told_so() {
    let mut session = session(1);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    let expected = vec![Output::SendGoodbye(Goodbye::EpochRefused), Output::Close(End::EpochRefused), connect(2, "b")];
    check(&mut session, vec![(1, Input::Received(1, welcome(2, 0)), expected)]);
}

#[test]
fn what_comes_while_settling_is_taken_up_when_streaming() {
    let mut session = session(4);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    session.handle(0, 0, Input::Received(1, welcome(3, 4)));
    check(
        &mut session,
        vec![
            (1, ack(4, 3), vec![]),
            (1, Input::Received(1, Message::Resync { id: 8 }), vec![]),
            (
                2,
                Input::Spool(1, SpoolAnswer::ResumeAgrees),
                vec![
                    Output::SendHeartbeat { sequence: 1 },
                    Output::TakeSnapshot,
                    Output::StoreAck { spool: spool(1), stored: 4, replicated: 3 },
                ],
            ),
            (3, Input::SnapshotTaken(1, 4), vec![Output::SendSnapshot { request: 8 }]),
        ],
    );
}

#[test]
fn a_higher_epoch_that_became_durable_late_ends_the_lower_stream() {
    let mut session = session(1);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    session.handle(0, 0, Input::Received(1, welcome(5, 0)));
    session.handle(0, 0, Input::Ended(1, End::Unavailable));
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(2));
    session.handle(0, 0, Input::Received(2, welcome(3, 0)));
    assert_eq!(session.phase(), Phase::Streaming);
    let expected = vec![Output::SendGoodbye(Goodbye::EpochRefused), Output::Close(End::EpochRefused), connect(3, "c")];
    check(&mut session, vec![(1, Input::Spool(1, SpoolAnswer::EpochIs(epoch(5))), expected)]);
}

#[test]
fn another_fleet_gets_nothing_and_is_left_alone_for_long() {
    let mut session = session(1);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    let Message::Welcome(mut other) = welcome(9, 0) else { unreachable!() };
    other.fleet = "test".into();
    check(&mut session, vec![(1, Input::Received(1, Message::Welcome(other)), vec![Output::Close(End::OtherFleet)])]);
    assert_eq!(session.deadline_ms(), Some(15_001));
    assert_eq!(session.highest_epoch(), Some(&epoch(3)));
}

#[test]
fn a_refused_entry_is_not_tried_hot() {
    let (mut session, _) = streaming(1);
    session.handle(1, 0, Input::Ended(1, End::Invalid));
    assert_eq!(session.deadline_ms(), Some(15_001));
    assert_eq!(session.last_end(), Some(End::Invalid));
    assert_eq!(session.endpoint(), "https://a:7420", "the primary is the primary");
}

#[test]
fn a_reverted_spool_starts_a_new_id_and_greets_again() {
    let mut session = session(2);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    session.handle(0, 0, Input::Received(1, welcome(3, 5)));
    let restarted = SpoolView { spool: spool(2), ..view(1) };
    check(
        &mut session,
        vec![
            (1, Input::Spool(1, SpoolAnswer::ResumeDiffers), vec![Output::RestartSpool]),
            (2, Input::SpoolChanged(restarted), vec![]),
            (3, Input::Spool(1, SpoolAnswer::Restarted(restarted)), vec![Output::Close(End::SpoolRestarted)]),
            (3, Input::Tick, vec![connect(2, "a")]),
        ],
    );
}

#[test]
fn a_diverged_spool_is_greeted_again_at_the_same_coordinator_and_starts_anew() {
    let (mut session, _) = streaming(2);
    check(&mut session, vec![(1, Input::Ended(1, End::Regreet), vec![])]);
    assert_eq!(session.endpoint(), "https://a:7420", "the one that has the other history is the primary");
    let again_ms = session.deadline_ms().unwrap();
    let restarted = SpoolView { spool: spool(2), ..view(2) };
    let resume = Position { spool: spool(1), sequence: 1, hash: EntryHash([7; 16]) };
    check(
        &mut session,
        vec![
            (again_ms, Input::Tick, vec![connect(2, "a")]),
            (again_ms, Input::Connected(2), vec![Output::SendHello]),
            (again_ms, Input::Received(2, welcome(3, 1)), vec![Output::CompareResume(resume)]),
            (again_ms, Input::Spool(2, SpoolAnswer::ResumeDiffers), vec![Output::RestartSpool]),
            (again_ms, Input::Spool(2, SpoolAnswer::Restarted(restarted)), vec![Output::Close(End::SpoolRestarted)]),
        ],
    );
    let again_ms = session.deadline_ms().unwrap();
    check(&mut session, vec![(again_ms, Input::Tick, vec![connect(3, "a")])]);
}

#[test]
fn what_is_gone_is_told_as_a_gap() {
    let (mut session, out) = streaming(9);
    assert_eq!(out[1..], [Output::ReadEntries { after: 0, up_to: 9 }]);
    let gap = |first, last| Output::SendGap { spool: spool(1), first, last };
    check(
        &mut session,
        vec![
            (
                1,
                entries(4..=5),
                vec![
                    gap(1, 3),
                    Output::SendEntries { spool: spool(1), entries: vec![entry(4), entry(5)] },
                    Output::ReadEntries { after: 5, up_to: 9 },
                ],
            ),
            (2, Input::Spool(1, SpoolAnswer::Entries(vec![])), vec![gap(6, 9)]),
        ],
    );
}

#[test]
fn a_stuck_coordinator_gets_a_window_of_entries_and_every_heartbeat() {
    let (mut session, _) = streaming(100);
    for batch in 1..=WINDOW_BATCHES as u64 {
        session.handle(1, 0, entries(batch..=batch));
    }
    for beat in 1..=11 {
        let expected = vec![Output::SendHeartbeat { sequence: beat + 1 }];
        check(&mut session, vec![(beat * BEAT_MS, Input::Tick, expected)]);
    }
    let out = session.handle(1 + ACK_TIMEOUT_MS, 0, Input::Tick);
    assert!(out.contains(&Output::Close(End::NoAck)), "{out:?}");
}

#[test]
fn the_open_set_goes_out_between_the_entries_it_is_as_of() {
    let (mut session, _) = streaming(3);
    check(
        &mut session,
        vec![
            // A read is out: it may be newer than a snapshot taken now.
            (1, Input::Received(1, Message::Resync { id: 5 }), vec![]),
            (
                2,
                entries(1..=1),
                vec![Output::SendEntries { spool: spool(1), entries: vec![entry(1)] }, Output::TakeSnapshot],
            ),
            (3, Input::SpoolChanged(view(8)), vec![]),
            (4, Input::SnapshotTaken(1, 3), vec![Output::ReadEntries { after: 1, up_to: 3 }]),
            (
                5,
                entries(2..=3),
                vec![
                    Output::SendEntries { spool: spool(1), entries: vec![entry(2), entry(3)] },
                    Output::SendSnapshot { request: 5 },
                    Output::ReadEntries { after: 3, up_to: 8 },
                ],
            ),
        ],
    );
}

#[test]
fn a_broken_protocol_ends_the_stream_with_a_reason() {
    for message in [
        Message::Malformed("bytes".into()),
        welcome(3, 0),
        Message::Ack { spool: spool(1), stored: 77, replicated: 77 },
    ] {
        let (mut session, _) = streaming(3);
        check(&mut session, vec![(1, Input::Received(1, message), vec![Output::Close(End::Protocol)])]);
    }
    let (mut session, _) = streaming(3);
    let other_spool = Message::Ack { spool: spool(2), stored: 77, replicated: 77 };
    check(
        &mut session,
        vec![
            (1, Input::Received(1, other_spool), vec![]),
            (1, Input::Received(1, Message::Unknown), vec![]),
            (1, Input::Received(7, Message::Malformed("of a stream that was let go".into())), vec![]),
        ],
    );
}

#[test]
fn learned_endpoints_are_bounded_and_configured_ones_stay() {
    let mut session = session(0);
    session.handle(0, 0, Input::Tick);
    session.handle(0, 0, Input::Connected(1));
    let Message::Welcome(mut many) = welcome(3, 0) else { unreachable!() };
    many.endpoints = (0..100).map(|n| format!("https://c{n}:7420")).chain(["x".repeat(300)]).collect();
    session.handle(0, 0, Input::Received(1, Message::Welcome(many)));
    assert_eq!(session.configured.len() + session.learned.len(), ENDPOINTS_MAX);
}

#[test]
fn waits_are_within_full_jitter_and_short_again_after_a_stable_stream() {
    let mut session = session(0);
    let mut now_ms = 0;
    for try_index in 0..12u32 {
        let out = session.handle(now_ms, 0, Input::Tick);
        let Some(Output::Connect { stream, .. }) = out.first() else { panic!("{out:?}") };
        session.handle(now_ms, u64::MAX, Input::Ended(*stream, End::Unavailable));
        let wait_ms = session.deadline_ms().unwrap() - now_ms;
        assert!(u128::from(wait_ms) <= BACKOFF.ceiling(try_index).as_millis(), "{try_index}: {wait_ms}");
        now_ms += wait_ms;
    }
    session.handle(now_ms, 0, Input::Tick);
    let stream = session.stream;
    session.handle(now_ms, 0, Input::Connected(stream));
    session.handle(now_ms, 0, Input::Received(stream, welcome(3, 0)));
    session.handle(now_ms + STABLE_MS, 0, Input::Ended(stream, End::Unavailable));
    assert_eq!(session.attempt(), 1);
}

#[derive(Debug, Clone)]
enum Event {
    Time(u64),
    Connected,
    Welcome { epoch: u64, resume: u64 },
    Ack { stored: u64, replicated: u64 },
    Resync,
    Noise(u8),
    Ended(u8),
    SpoolWorks { evicted: u64, fails: bool },
    Append(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u64..7_000).prop_map(Event::Time),
        4 => Just(Event::Connected),
        4 => (1u64..6, 0u64..8).prop_map(|(epoch, resume)| Event::Welcome { epoch, resume }),
        4 => (0u64..40, 0u64..40).prop_map(|(stored, replicated)| Event::Ack { stored, replicated }),
        2 => Just(Event::Resync),
        1 => (0u8..4).prop_map(Event::Noise),
        2 => (0u8..6).prop_map(Event::Ended),
        8 => (0u64..3, proptest::bool::weighted(0.05)).prop_map(|(evicted, fails)| Event::SpoolWorks { evicted, fails }),
        3 => (1u64..5).prop_map(Event::Append),
    ]
}

/// The world around a session: does what it is told, at moments of its own, and checks every output.
#[derive(Default)]
struct World {
    now_ms: u64,
    head: u64,
    pending: Vec<(u64, Output)>,
    stream: u64,
    epoch_of_stream: u64,
    highest_durable: u64,
    last_sent: u64,
    acked_by_peer: u64,
    heartbeat_due_ms: Option<u64>,
}

impl World {
    fn observe(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Connect { stream, .. } => {
                    assert!(stream > self.stream, "stream numbers rise");
                    (self.stream, self.last_sent, self.acked_by_peer, self.heartbeat_due_ms) = (stream, 0, 0, None);
                    self.epoch_of_stream = 0;
                }
                Output::SendHeartbeat { .. } => {
                    assert_eq!(self.epoch_of_stream, self.highest_durable, "a lower epoch, or one not durable yet");
                    self.heartbeat_due_ms = Some(self.now_ms + BEAT_MS);
                }
                Output::SendEntries { ref entries, .. } => {
                    assert_eq!(self.epoch_of_stream, self.highest_durable);
                    for entry in entries {
                        assert!(entry.sequence > self.last_sent, "rising order");
                        if self.last_sent > 0 {
                            assert_eq!(entry.sequence, self.last_sent + 1, "nothing left out in silence");
                        }
                        self.last_sent = entry.sequence;
                    }
                }
                Output::SendGap { first, last, .. } => {
                    assert!(first <= last && (self.last_sent == 0 || first == self.last_sent + 1));
                    self.last_sent = last;
                }
                Output::StoreAck { stored, replicated, .. } => {
                    assert!(replicated <= stored && stored <= self.acked_by_peer, "deletes only what is safe");
                }
                Output::Close(_) => self.heartbeat_due_ms = None,
                asked @ (Output::StoreEpoch { .. }
                | Output::CompareResume(_)
                | Output::RestartSpool
                | Output::ReadEntries { .. }
                | Output::TakeSnapshot) => {
                    self.pending.push((self.stream, asked));
                    assert!(self.pending.len() < 64);
                }
                _ => {}
            }
        }
    }

    /// The spool does the oldest thing it was asked for.
    fn spool_input(&mut self, evicted: u64, fails: bool) -> Option<Input> {
        if self.pending.is_empty() {
            return None;
        }
        let (stream, asked) = self.pending.remove(0);
        Some(match asked {
            _ if fails => Input::Spool(stream, SpoolAnswer::Failed),
            Output::StoreEpoch { epoch, .. } => {
                self.highest_durable = self.highest_durable.max(epoch.number);
                Input::Spool(stream, SpoolAnswer::EpochIs(super::tests::epoch(self.highest_durable)))
            }
            Output::CompareResume(resume) if resume.sequence > self.head => {
                Input::Spool(stream, SpoolAnswer::ResumeDiffers)
            }
            Output::CompareResume(_) => Input::Spool(stream, SpoolAnswer::ResumeAgrees),
            Output::RestartSpool => Input::Spool(stream, SpoolAnswer::Restarted(view(self.head))),
            Output::ReadEntries { after, up_to } => {
                let read = (after + 1 + evicted..=up_to).take(3).map(entry).collect();
                Input::Spool(stream, SpoolAnswer::Entries(read))
            }
            _ => Input::SnapshotTaken(stream, self.head),
        })
    }
}

fn input_of(world: &mut World, event: Event, stream: u64) -> Option<Input> {
    Some(match event {
        Event::Time(ms) => {
            world.now_ms += ms;
            Input::Tick
        }
        Event::Connected => Input::Connected(stream),
        Event::Welcome { epoch, resume } => {
            if world.epoch_of_stream == 0 {
                world.epoch_of_stream = epoch;
                world.acked_by_peer = resume;
            }
            Input::Received(stream, welcome(epoch, resume))
        }
        Event::Ack { stored, replicated } => {
            world.acked_by_peer = world.acked_by_peer.max(stored);
            Input::Received(stream, Message::Ack { spool: spool(1), stored, replicated })
        }
        Event::Resync => Input::Received(stream, Message::Resync { id: 1 }),
        Event::Noise(0) => Input::Received(stream, Message::Malformed("noise".into())),
        Event::Noise(1) => Input::Received(stream.wrapping_sub(1), Message::Malformed("late".into())),
        Event::Noise(2) => Input::Received(stream, Message::Ping { id: 1 }),
        Event::Noise(_) => Input::Received(stream, Message::Unknown),
        Event::Ended(kind) => {
            let ends = [End::NotPrimary, End::Busy, End::Invalid, End::Conflict, End::Denied, End::Unavailable];
            Input::Ended(stream, ends.get(usize::from(kind)).copied().unwrap_or(End::Unavailable))
        }
        Event::SpoolWorks { evicted, fails } => world.spool_input(evicted, fails)?,
        Event::Append(count) => {
            world.head += count;
            Input::SpoolChanged(view(world.head))
        }
    })
}

proptest! {
    #[test]
    fn invariants_hold_in_any_order(events in proptest::collection::vec((event(), any::<u64>()), 1..300)) {
        let mut session = session(0);
        let mut world = World { highest_durable: 3, ..World::default() };
        for (event, random) in events {
            // Messages reach a session only once it is connected; before, they are of an earlier life.
            let greeting = matches!(session.state, State::Greeting { .. });
            if matches!(event, Event::Welcome { .. }) && !greeting && world.epoch_of_stream == 0 {
                continue;
            }
            let stream = world.stream;
            let Some(input) = input_of(&mut world, event, stream) else { continue };
            let outputs = session.handle(world.now_ms, random, input);
            world.observe(outputs);
            // The driver ticks at the deadline: whatever else is going on, a heartbeat that is due goes out now.
            if session.deadline_ms().is_some_and(|due_ms| due_ms <= world.now_ms) {
                let outputs = session.handle(world.now_ms, random, Input::Tick);
                world.observe(outputs);
            }
            if session.phase() == Phase::Streaming {
                let due_ms = world.heartbeat_due_ms.expect("streaming begins with a heartbeat");
                prop_assert!(due_ms > world.now_ms, "a heartbeat is late");
            }
            prop_assert!(session.deadline_ms().is_some_and(|due_ms| due_ms > world.now_ms || session.phase() == Phase::Idle));
        }
    }
}
