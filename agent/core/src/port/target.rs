//! What a port probe asks about, what listens on a host, and which listener serves which target.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Bytes of a Unix socket's name, `sun_path`.
const UNIX_NAME_BYTES_MAX: usize = 108;

/// The host part of a TCP target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpHost {
    /// `*`: any address.
    Any,
    /// `0.0.0.0`: any IPv4 address.
    AnyV4,
    /// `[::]`: any IPv6 address.
    AnyV6,
    /// `localhost`: the loopback address of either family.
    Localhost,
    /// One address.
    Ip(IpAddr),
}

/// What is asked about.
///
/// ```
/// use muster_agent_core::port::Target;
/// for text in ["127.0.0.1:80", "[::1]:80", "*:80", "unix:/run/a.sock", "unix:@name"] {
///     assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
/// }
/// assert!("80".parse::<Target>().unwrap_err().contains("*:80"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// A TCP port.
    Tcp {
        /// Where.
        host: TcpHost,
        /// Which.
        port: u16,
    },
    /// A Unix socket with a path.
    Unix(String),
    /// A Unix socket in the abstract namespace, without its leading NUL.
    Abstract(String),
}

impl FromStr for Target {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("unix:") {
            return unix(name);
        }
        let hint = || {
            let like = if text.bytes().all(|byte| byte.is_ascii_digit()) { text } else { "80" };
            format!("expected \"127.0.0.1:80\", \"[::1]:80\", \"*:{like}\" or \"unix:/path\", found {text:?}")
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(hint)?;
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port: u16 = if digits { port.parse().map_err(|_| hint())? } else { return Err(hint()) };
        if port == 0 {
            return Err(format!("port 0 cannot be listened on, found {text:?}"));
        }
        let host = match host {
            "*" => TcpHost::Any,
            "0.0.0.0" => TcpHost::AnyV4,
            "[::]" => TcpHost::AnyV6,
            "localhost" => TcpHost::Localhost,
            other => match other.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
                Some(inner) => match inner.parse::<Ipv6Addr>().map_err(|_| hint())? {
                    // However its zeros are written.
                    Ipv6Addr::UNSPECIFIED => TcpHost::AnyV6,
                    ip => TcpHost::Ip(ip.into()),
                },
                None => TcpHost::Ip(other.parse::<Ipv4Addr>().map_err(|_| hint())?.into()),
            },
        };
        Ok(Self::Tcp { host, port })
    }
}

fn unix(name: &str) -> Result<Target, String> {
    if name.len() >= UNIX_NAME_BYTES_MAX {
        return Err(format!(
            "a socket's name has at most {} bytes, this one has {}",
            UNIX_NAME_BYTES_MAX - 1,
            name.len()
        ));
    }
    match name.strip_prefix('@') {
        Some("") => Err("the name of an abstract socket must not be empty".to_owned()),
        Some(inner) => Ok(Target::Abstract(inner.to_owned())),
        None if name.starts_with('/') => Ok(Target::Unix(name.to_owned())),
        None => Err(format!("expected \"unix:/path\" or \"unix:@name\", found {:?}", format!("unix:{name}"))),
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => match host {
                TcpHost::Any => write!(f, "*:{port}"),
                TcpHost::AnyV4 => write!(f, "0.0.0.0:{port}"),
                TcpHost::AnyV6 => write!(f, "[::]:{port}"),
                TcpHost::Localhost => write!(f, "localhost:{port}"),
                TcpHost::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{port}"),
                TcpHost::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{port}"),
            },
            Self::Unix(path) => write!(f, "unix:{path}"),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp {
        /// The bound address; unspecified for a wildcard.
        ip: IpAddr,
        /// The port.
        port: u16,
        /// False for an IPv6 wildcard that serves IPv4 as well.
        v6only: bool,
    },
    /// A path as it was given to `bind`.
    Unix {
        /// The path.
        path: String,
        /// Inode of the socket file (its low 32 bits), where the kernel tells it.
        file_inode: Option<u32>,
    },
    /// The abstract namespace.
    Abstract(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { ip: IpAddr::V4(ip), port, .. } => write!(f, "{ip}:{port}"),
            Self::Tcp { ip: IpAddr::V6(ip), port, .. } => write!(f, "[{ip}]:{port}"),
            Self::Unix { path, .. } => write!(f, "unix:{path}"),
            Self::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: Address,
    /// The socket's own inode, as in `/proc/PID/fd`.
    pub inode: u64,
    /// Who created it, where the kernel tells it.
    pub uid: Option<u32>,
    /// Connections that wait to be accepted.
    pub queue: u32,
    /// How many may wait.
    pub backlog: Option<u32>,
}

impl Listener {
    /// True when the next connection has to wait: the queue holds at least its backlog.
    pub fn is_full(&self) -> bool {
        self.queue > 0 && self.backlog.is_some_and(|backlog| self.queue >= backlog)
    }
}

/// What is at the path of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketFile {
    /// Nothing.
    Missing,
    /// A socket with this inode (its low 32 bits).
    Socket(u32),
    /// Something else.
    NotASocket(&'static str),
    /// It cannot be looked at: the reason.
    Unreadable(String),
}

/// The listeners that serve `target`: those that fit it most narrowly, as the kernel chooses them.
pub fn matching(target: &Target, file: Option<&SocketFile>, listeners: &[Listener]) -> Vec<Listener> {
    let fits: Vec<(u8, &Listener)> =
        listeners.iter().filter_map(|listener| Some((fit(target, file, &listener.address)?, listener))).collect();
    let best = fits.iter().map(|(fit, _)| *fit).max();
    fits.into_iter().filter(|(fit, _)| Some(*fit) == best).map(|(_, listener)| listener.clone()).collect()
}

/// How narrowly an address fits: 3 the address itself, 2 the family's wildcard, 1 the dual-stack wildcard.
fn fit(target: &Target, file: Option<&SocketFile>, address: &Address) -> Option<u8> {
    match (target, address) {
        (Target::Tcp { host, port }, Address::Tcp { ip, port: bound, v6only }) if port == bound => {
            let dual = ip.is_ipv6() && ip.is_unspecified() && !v6only;
            match host {
                TcpHost::Any => Some(3),
                TcpHost::AnyV4 => (ip.to_canonical().is_ipv4()).then_some(3).or(dual.then_some(1)),
                TcpHost::AnyV6 => ip.is_ipv6().then_some(3),
                TcpHost::Localhost => {
                    fit_ip(Ipv4Addr::LOCALHOST.into(), *ip, dual).max(fit_ip(Ipv6Addr::LOCALHOST.into(), *ip, dual))
                }
                TcpHost::Ip(wanted) => fit_ip(*wanted, *ip, dual),
            }
        }
        (Target::Unix(path), Address::Unix { path: bound, file_inode }) => {
            let named = path == bound;
            let same_file = match (file, file_inode) {
                (Some(SocketFile::Socket(inode)), Some(bound)) => inode == bound,
                // The kernel did not tell the file: the name has to do.
                (Some(SocketFile::Socket(_)) | None, None) => named,
                _ => false,
            };
            // Another name for the same inode (a relative or a linked path) is taken when nothing fits better.
            same_file.then_some(if named { 3 } else { 2 })
        }
        (Target::Abstract(name), Address::Abstract(bound)) => (name == bound).then_some(3),
        _ => None,
    }
}

fn fit_ip(wanted: IpAddr, bound: IpAddr, dual: bool) -> Option<u8> {
    if bound.to_canonical() == wanted.to_canonical() {
        Some(3)
    } else if bound.is_unspecified() && bound.is_ipv4() == wanted.is_ipv4() {
        Some(2)
    } else if dual {
        Some(1)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(ip: &str, v6only: bool) -> Listener {
        let address = Address::Tcp { ip: ip.parse().unwrap(), port: 80, v6only };
        Listener { address, inode: 1, uid: None, queue: 0, backlog: None }
    }

    fn served(target: &str, listeners: &[Listener]) -> Vec<String> {
        let target: Target = target.parse().unwrap();
        matching(&target, None, listeners).iter().map(|found| found.address.to_string()).collect()
    }

    #[test]
    fn bad_targets_say_what_is_expected() {
        for text in [
            "",
            "80",
            ":80",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:0",
            "1.2.3.4:+80",
            "1.2.3.4:65536",
            "::1:80",
            "[1.2.3.4]:80",
            "web:80",
            "unix:",
            "unix:rel",
            "unix:@",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text:?}");
        }
        assert!(format!("unix:/{}", "x".repeat(200)).parse::<Target>().is_err());
    }

    #[test]
    fn the_narrowest_listener_serves() {
        let all = [tcp("0.0.0.0", false), tcp("127.0.0.1", false), tcp("::", true)];
        assert_eq!(served("127.0.0.1:80", &all), ["127.0.0.1:80"]);
        assert_eq!(served("10.0.0.1:80", &all), ["0.0.0.0:80"]);
        assert_eq!(served("[::1]:80", &all), ["[::]:80"]);
        assert_eq!(served("*:80", &all).len(), 3);
        assert_eq!(served("0.0.0.0:80", &all).len(), 2);
        assert!(served("127.0.0.1:81", &all).is_empty());
        let dual = [tcp("::", false)];
        assert_eq!(served("127.0.0.1:80", &dual), ["[::]:80"]);
        assert_eq!(served("0.0.0.0:80", &dual), ["[::]:80"]);
        assert_eq!(served("localhost:80", &dual), ["[::]:80"]);
        assert!(served("127.0.0.1:80", &[tcp("::", true)]).is_empty());
        assert_eq!(served("127.0.0.1:80", &[tcp("::ffff:127.0.0.1", false)]).len(), 1);
    }

    #[test]
    fn the_wildcard_is_the_wildcard_however_its_zeros_are_written() {
        for text in ["[::]:80", "[::0]:80", "[0:0:0:0:0:0:0:0]:80"] {
            assert_eq!(text.parse(), Ok(Target::Tcp { host: TcpHost::AnyV6, port: 80 }), "{text}");
        }
    }

    #[test]
    fn a_unix_socket_is_its_file() {
        let unix = |path: &str, file_inode| Listener {
            address: Address::Unix { path: path.into(), file_inode },
            ..tcp("::", false)
        };
        let target: Target = "unix:/run/a".parse().unwrap();
        let file = SocketFile::Socket(5);
        let found = |listeners: &[Listener]| matching(&target, Some(&file), listeners).len();
        assert_eq!(found(&[unix("/run/a", Some(5))]), 1);
        assert_eq!(found(&[unix("/run/a", Some(6))]), 0);
        assert_eq!(found(&[unix("a", Some(5))]), 1);
        assert_eq!(found(&[unix("/run/a", None)]), 1);
        assert_eq!(matching(&target, Some(&SocketFile::Missing), &[unix("/run/a", Some(5))]).len(), 0);
    }

    proptest! {
        #[test]
        fn what_parses_prints_and_parses_again(text in "(unix:)?[@/*\\[\\]:0-9a-f.]{0,20}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>(), Ok(target));
            }
        }
    }
}
