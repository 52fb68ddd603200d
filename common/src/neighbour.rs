//! Which address may be asked about when an agent fell silent. Both sides hold to it: the coordinator before it asks,
//! the agent before it connects.

use std::net::IpAddr;

/// Why nobody is to connect to `address`; `Ok` when it may be another host.
///
/// ```
/// use muster_common::neighbour::may_be_asked;
/// assert!(may_be_asked("10.0.0.7".parse().unwrap()).is_ok());
/// for never in ["127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "::", "fe80::1"] {
///     assert!(may_be_asked(never.parse().unwrap()).is_err(), "{never}");
/// }
/// ```
pub fn may_be_asked(address: IpAddr) -> Result<(), &'static str> {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let this_network = matches!(address, IpAddr::V4(address) if address.octets()[0] == 0);
    match () {
        () if address.is_unspecified() || this_network => Err("it is no address of a host"),
        () if address.is_loopback() => Err("it is a loopback address"),
        () if link_local => Err("it is a link-local address"),
        () if address.is_multicast() => Err("it is a multicast address"),
        () if matches!(address, IpAddr::V4(address) if address.is_broadcast()) => Err("it is the broadcast address"),
        () => Ok(()),
    }
}
