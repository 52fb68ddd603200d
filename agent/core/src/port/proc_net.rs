//! `/proc/net/tcp`, `tcp6` and `unix`: the way to the listening sockets where netlink is closed to the agent.

use super::target::{Address, Listener};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// State `TCP_LISTEN`.
const LISTEN: &str = "0A";
/// `SO_ACCEPTCON` among the flags of a Unix socket.
const ACCEPTS: u32 = 1 << 16;

/// The listeners in the text of `/proc/net/tcp` or `tcp6`. `tx_queue` of a listener is its backlog on no kernel, so
/// that stays unknown; whether an IPv6 wildcard serves IPv4 is not told, and usually it does.
pub fn parse_tcp(text: &str) -> Vec<Listener> {
    text.lines().filter_map(tcp_line).collect()
}

fn tcp_line(line: &str) -> Option<Listener> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, local, _, state, queues, _, _, uid, _, inode, ..] = fields.as_slice() else { return None };
    if *state != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let (_, queue) = queues.split_once(':')?;
    Some(Listener {
        address: Address::Tcp { ip: hex_ip(ip)?, port: u16::from_str_radix(port, 16).ok()?, v6only: false },
        inode: inode.parse().ok()?,
        uid: uid.parse().ok(),
        queue: u32::from_str_radix(queue, 16).ok()?,
        backlog: None,
    })
}

/// Words of 32 bits, each printed as a number in the host's byte order.
fn hex_ip(text: &str) -> Option<IpAddr> {
    let mut octets = [0u8; 16];
    let words = text.len().checked_div(8)?;
    if text.len() != words * 8 || (words != 1 && words != 4) {
        return None;
    }
    for (index, slot) in octets.chunks_exact_mut(4).take(words).enumerate() {
        let word = u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok()?;
        slot.copy_from_slice(&word.to_ne_bytes());
    }
    Some(match (words, octets) {
        (1, [a, b, c, d, ..]) => Ipv4Addr::new(a, b, c, d).into(),
        (_, octets) => Ipv6Addr::from(octets).into(),
    })
}

/// The listeners in the text of `/proc/net/unix`. A name with spaces is the rest of its line.
pub fn parse_unix(text: &str) -> Vec<Listener> {
    text.lines().filter_map(unix_line).collect()
}

fn unix_line(line: &str) -> Option<Listener> {
    let mut rest = line;
    let mut fields = [""; 7];
    for field in &mut fields {
        rest = rest.trim_start();
        let end = rest.find(' ').unwrap_or(rest.len());
        (*field, rest) = rest.split_at_checked(end)?;
    }
    let [_, _, _, flags, _, _, inode] = fields;
    let name = rest.strip_prefix(' ').filter(|name| !name.is_empty())?;
    if u32::from_str_radix(flags, 16).ok()? & ACCEPTS == 0 {
        return None;
    }
    let address = match name.strip_prefix('@') {
        Some(name) => Address::Abstract(name.to_owned()),
        None => Address::Unix { path: name.to_owned(), file_inode: None },
    };
    Some(Listener { address, inode: inode.parse().ok()?, uid: None, queue: 0, backlog: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_of_all_kinds() {
        let tcp = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:0050 00000000:0000 0A 00000000:00000003 00:00000000 00000000    33        0 777 1 0 100\n\
             1: 0100007F:0050 0100007F:9999 01 00000000:00000000 00:00000000 00000000    33        0 778 1 0 100\n";
        let [found] = parse_tcp(tcp).try_into().unwrap();
        assert_eq!(found.address.to_string(), "127.0.0.1:80");
        assert_eq!((found.inode, found.uid, found.queue), (777, Some(33), 3));
        let tcp6 = "0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A \
             00000000:00000000 00:00000000 00000000     0        0 5 1 0 100\n";
        assert_eq!(parse_tcp(tcp6)[0].address.to_string(), "[::1]:8080");
        let unix = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             ffff88: 00000002 00000000 00010000 0001 01 11111 /run/a b.sock\n\
             ffff88: 00000002 00000000 00010000 0001 01 11112 @name\n\
             ffff88: 00000002 00000000 00000000 0002 01 11113 /run/datagram\n\
             ffff88: 00000002 00000000 00010000 0001 01 11114\n";
        let names: Vec<String> = parse_unix(unix).iter().map(|found| found.address.to_string()).collect();
        assert_eq!(names, ["unix:/run/a b.sock", "unix:@name"]);
    }

    proptest! {
        #[test]
        fn never_panics(text in any::<String>(), near in "([0-9A-F]{0,33}[: ]){0,14}[@/a-zä]{0,4}") {
            for text in [text, near] {
                let _ = parse_tcp(&text);
                let _ = parse_unix(&text);
            }
        }
    }
}
