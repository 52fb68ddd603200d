//! Points in time as people type them. All of them are UTC.

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use muster_common::units::parse_duration;

/// A point in time that is over: `2026-11-21T03:04:05Z`, `2026-11-21 03:04`, `03:04` (the last one there was), `15m` or
/// `15m ago`.
pub(crate) fn past(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(ago) = parse_duration(text.strip_suffix(" ago").unwrap_or(text)) {
        return moved(now, ago, -1).ok_or_else(|| expected(text, "15m ago"));
    }
    let at = absolute(text, now, -1).ok_or_else(|| expected(text, "15m ago"))?;
    if at > now {
        return Err(format!("{text:?} is not over yet: it is {} now", now.strftime("%Y-%m-%d %H:%M:%SZ")));
    }
    Ok(at)
}

/// What is to be told of a time of day that is to come today, so that yesterday's is taken.
pub(crate) fn of_yesterday(text: &str, now: Timestamp) -> Option<String> {
    let text = text.trim();
    let has_date = text.contains([' ', 'T', '-']);
    text.trim_end_matches('Z').parse::<Time>().ok().filter(|_| !has_date)?;
    let at = absolute(text, now, -1)?;
    let date = |at: Timestamp| at.to_zoned(TimeZone::UTC).date();
    (date(at) != date(now))
        .then(|| format!("{text} of today is to come: this is about {}", at.strftime("%Y-%m-%d %H:%M:%SZ")))
}

/// A point in time that is to come: `2026-11-21T03:04:05Z`, `2026-11-21 03:04`, `03:04` (the next one), `30m` or
/// `in 30m`.
pub(crate) fn future(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(length) = parse_duration(text.strip_prefix("in ").unwrap_or(text)) {
        return moved(now, length, 1).ok_or_else(|| expected(text, "in 30m"));
    }
    absolute(text, now, 1).ok_or_else(|| expected(text, "in 30m"))
}

/// For the wire.
pub(crate) fn to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

fn expected(text: &str, relative: &str) -> String {
    format!("expected \"2026-11-21T03:04:05Z\", \"2026-11-21 03:04\", \"03:04\" (UTC) or {relative:?}, found {text:?}")
}

fn moved(now: Timestamp, length: std::time::Duration, sign: i32) -> Option<Timestamp> {
    let length = SignedDuration::try_from(length).ok()?;
    now.checked_add(length * sign).ok()
}

/// A time of day is the nearest one in the direction of `sign`.
fn absolute(text: &str, now: Timestamp, sign: i32) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    let at = |date: Date, time: Time| date.to_datetime(time).to_zoned(TimeZone::UTC).ok().map(|at| at.timestamp());
    let text = text.trim_end_matches('Z');
    if let Some((date, time)) = text.split_once([' ', 'T']) {
        return at(date.parse().ok()?, time.parse().ok()?);
    }
    let time: Time = text.parse().ok()?;
    let today = at(now.to_zoned(TimeZone::UTC).date(), time)?;
    let day = std::time::Duration::from_secs(86_400);
    match sign {
        -1 if today > now => moved(today, day, -1),
        1 if today < now => moved(today, day, 1),
        _ => Some(today),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_type_them() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let check = |found: Result<Timestamp, String>, expected: &str| {
            assert_eq!(found.map(|at| at.to_string()), Ok(expected.to_owned()));
        };
        for (text, expected) in [
            ("2026-11-21T03:04:05Z", "2026-11-21T03:04:05Z"),
            ("2026-11-21T05:04:05+02:00", "2026-11-21T03:04:05Z"),
            ("2026-11-21 03:04", "2026-11-21T03:04:00Z"),
            ("2026-11-21 03:04:05Z", "2026-11-21T03:04:05Z"),
            ("03:04", "2026-11-21T03:04:00Z"),
            ("13:00", "2026-11-20T13:00:00Z"),
            ("15m", "2026-11-21T11:45:00Z"),
            ("2h ago", "2026-11-21T10:00:00Z"),
        ] {
            check(past(text, now), expected);
        }
        check(future("13:00", now), "2026-11-21T13:00:00Z");
        check(future("03:04", now), "2026-11-22T03:04:00Z");
        check(future("in 30m", now), "2026-11-21T12:30:00Z");
        assert_eq!(
            of_yesterday("13:00", now).as_deref(),
            Some("13:00 of today is to come: this is about 2026-11-20 13:00:00Z")
        );
        for clear in ["03:04", "2026-11-20 13:00", "20h", "soon"] {
            assert_eq!(of_yesterday(clear, now), None, "{clear}");
        }
        assert!(past("2026-11-22 03:04", now).unwrap_err().contains("not over yet"));
        for wrong in ["", "soon", "25:00", "2026-13-01 00:00", "99999999999d ago"] {
            assert!(past(wrong, now).is_err() && future(wrong, now).is_err(), "{wrong}");
        }
    }
}
