//! Second opinions: a coordinator asks whether a neighbour that fell silent answers this host. What may be asked, how
//! often, and which ports of its own an agent tells of.
//!
//! Must never let a coordinator use this host to look around: a few connections a minute, to another host's address, on
//! few ports, with nothing sent on them.

use crate::port::{Address, Listener};
use muster_common::limits::LISTENING_PORTS_MAX;
use muster_common::neighbour::may_be_asked;
use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

/// Questions followed within a minute. A coordinator asks one agent less often than this.
pub const QUESTIONS_PER_MINUTE_MAX: usize = 6;
const MINUTE_MS: u64 = 60_000;
/// Where people log in: the best sign of a host that lives.
const SSH: u16 = 22;
/// Ports below this belong to services that stay.
const WELL_KNOWN_BELOW: u16 = 1024;

/// The agent's own bound on what it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    enabled: bool,
    followed_boottime_ms: VecDeque<u64>,
}

impl Guard {
    /// `enabled` is `[agent] second_opinion`.
    pub const fn new(enabled: bool) -> Self {
        Self { enabled, followed_boottime_ms: VecDeque::new() }
    }

    /// Where to connect to, or why not. What is allowed counts.
    pub fn admit(&mut self, now_boottime_ms: u64, address: &str, ports: &[u32]) -> Result<(IpAddr, Vec<u16>), String> {
        if !self.enabled {
            return Err("second opinions are switched off here ([agent] second_opinion)".to_owned());
        }
        let address: IpAddr = address.parse().map_err(|_| "that is no IP address".to_owned())?;
        let address = address.to_canonical();
        may_be_asked(address).map_err(|why| format!("{address} is not looked at: {why}"))?;
        if ports.is_empty() || ports.len() > LISTENING_PORTS_MAX {
            return Err(format!("{} ports are asked about, one question has 1 to {LISTENING_PORTS_MAX}", ports.len()));
        }
        let port = |port: &u32| u16::try_from(*port).ok().filter(|port| *port > 0);
        let ports: Option<BTreeSet<u16>> = ports.iter().map(port).collect();
        let ports = ports.ok_or("one of the ports is none")?;
        let recent = &mut self.followed_boottime_ms;
        while recent.front().is_some_and(|at| now_boottime_ms.saturating_sub(*at) >= MINUTE_MS) {
            recent.pop_front();
        }
        if recent.len() >= QUESTIONS_PER_MINUTE_MAX {
            return Err(format!("more than {QUESTIONS_PER_MINUTE_MAX} questions in a minute"));
        }
        recent.push_back(now_boottime_ms);
        Ok((address, ports.into_iter().collect()))
    }
}

/// The ports a coordinator may later ask neighbours about: those on which others can reach this host, the most telling
/// first.
pub fn listening_ports(listeners: &[Listener]) -> Vec<u16> {
    let open = |listener: &Listener| match listener.address {
        Address::Tcp { ip, port, .. } if ip.is_unspecified() || may_be_asked(ip).is_ok() => Some(port),
        _ => None,
    };
    let unique: BTreeSet<u16> = listeners.iter().filter_map(open).filter(|port| *port > 0).collect();
    let mut ports: Vec<u16> = unique.into_iter().collect();
    ports.sort_by_key(|port| (*port != SSH, *port >= WELL_KNOWN_BELOW, *port));
    ports.truncate(LISTENING_PORTS_MAX);
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(guard: &mut Guard, address: &str, ports: &[u32], why: &str) {
        let words = guard.admit(0, address, ports).unwrap_err();
        assert!(words.contains(why), "{address} {ports:?}: {words}");
    }

    #[test]
    fn only_another_hosts_address_on_few_ports_is_looked_at() {
        let mut guard = Guard::new(true);
        for address in
            ["127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "224.0.0.1", "ff02::1", "0.0.0.0"]
        {
            refused(&mut guard, address, &[22], "not looked at");
        }
        refused(&mut guard, "localhost", &[22], "no IP address");
        refused(&mut guard, "10.0.0.7:22", &[22], "no IP address");
        refused(&mut guard, "10.0.0.7", &[], "0 ports");
        refused(&mut guard, "10.0.0.7", &[1, 2, 3, 4, 5, 6, 7, 8, 9], "9 ports");
        refused(&mut guard, "10.0.0.7", &[0], "none");
        refused(&mut guard, "10.0.0.7", &[65_536], "none");
        let admitted = guard.admit(0, "10.0.0.7", &[443, 22, 22]).unwrap();
        assert_eq!(admitted, ("10.0.0.7".parse().unwrap(), vec![22, 443]));
        refused(&mut Guard::new(false), "10.0.0.7", &[22], "switched off");
    }

    #[test]
    fn a_coordinator_that_asks_too_often_waits_for_the_minute_to_pass() {
        let mut guard = Guard::new(true);
        for at in 0..QUESTIONS_PER_MINUTE_MAX as u64 {
            guard.admit(at, "10.0.0.7", &[22]).unwrap();
            // What is refused anyway does not count.
            guard.admit(at, "127.0.0.1", &[22]).unwrap_err();
        }
        assert!(guard.admit(59_999, "10.0.0.7", &[22]).unwrap_err().contains("in a minute"));
        guard.admit(60_000, "10.0.0.7", &[22]).unwrap();
        assert!(guard.admit(60_000, "10.0.0.7", &[22]).is_err());
    }

    #[test]
    fn ports_that_others_can_reach_are_told_ssh_first_and_few() {
        let listener = |text: &str, port: u16| Listener {
            address: Address::Tcp { ip: text.parse().unwrap(), port, v6only: false },
            inode: 1,
            uid: None,
            queue: 0,
            backlog: None,
        };
        let mut listeners = vec![
            listener("127.0.0.1", 5432),
            listener("::1", 6000),
            listener("fe80::1", 7000),
            listener("0.0.0.0", 9100),
            listener("10.0.0.5", 443),
            listener("::", 22),
            listener("0.0.0.0", 22),
        ];
        assert_eq!(listening_ports(&listeners), [22, 443, 9100]);
        listeners.extend((10_000..10_100).map(|port| listener("0.0.0.0", port)));
        assert_eq!(listening_ports(&listeners).len(), LISTENING_PORTS_MAX);
        assert_eq!(listening_ports(&[]), [0; 0]);
    }
}
