//! Names of users and groups from the text of `/etc/passwd` and `/etc/group`.
//!
//! Nothing else is asked: a name service may be on another machine, and hang. A user it does not know stays a number.

use std::collections::BTreeMap;

/// Accounts kept of each kind; the files of a host have hundreds.
const ACCOUNTS_MAX: usize = 16_384;

/// Who is who on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accounts {
    users: BTreeMap<u32, User>,
    groups: BTreeMap<u32, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    name: String,
    gid: u32,
}

impl Accounts {
    /// Reads both texts; lines that are not well formed are passed over, and of two with one number the first counts.
    pub fn parse(passwd: &str, group: &str) -> Self {
        let mut accounts = Self::default();
        for line in passwd.lines().take(ACCOUNTS_MAX) {
            let mut fields = line.split(':');
            let (Some(name), Some(_), Some(Ok(uid)), Some(Ok(gid))) =
                (fields.next(), fields.next(), fields.next().map(str::parse), fields.next().map(str::parse))
            else {
                continue;
            };
            if name.is_empty() {
                continue;
            }
            accounts.users.entry(uid).or_insert_with(|| User { name: name.to_owned(), gid });
        }
        for line in group.lines().take(ACCOUNTS_MAX) {
            let mut fields = line.split(':');
            let (Some(name), Some(_), Some(Ok(gid))) =
                (fields.next(), fields.next(), fields.next().map(str::parse::<u32>))
            else {
                continue;
            };
            if name.is_empty() {
                continue;
            }
            accounts.groups.entry(gid).or_insert_with(|| name.to_owned());
        }
        accounts
    }

    /// The user's name, or number.
    pub fn user(&self, uid: u32) -> String {
        self.users.get(&uid).map_or_else(|| uid.to_string(), |user| user.name.clone())
    }

    /// The group's name, or number.
    pub fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }

    /// Whether nobody but the user is in the group, as far as the names tell: most systems make such a group with each
    /// user.
    pub fn is_private_group(&self, uid: u32, gid: u32) -> bool {
        let Some(user) = self.users.get(&uid) else { return uid == gid };
        user.gid == gid && self.groups.get(&gid) == Some(&user.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_has_no_name_stays_a_number() {
        let accounts = Accounts::parse(":x:7:7::/:\n", ":x:7:\n");
        assert_eq!((accounts.user(7), accounts.group(7)), ("7".into(), "7".into()));
    }

    #[test]
    fn names_are_found_and_numbers_stay() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nspl:x:900:900::/:\nbob:x:1000:100::/:\ntoor:x:0:0::/:\n";
        let accounts = Accounts::parse(passwd, "root:x:0:\nspl:x:900:\nusers:x:100:bob\n");
        assert_eq!((accounts.user(0), accounts.user(900), accounts.user(7)), ("root".into(), "spl".into(), "7".into()));
        assert_eq!((accounts.group(100), accounts.group(7)), ("users".into(), "7".into()));
        assert!(accounts.is_private_group(900, 900));
        assert!(!accounts.is_private_group(1000, 100) && !accounts.is_private_group(900, 100));
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a-z:0-9\n]{0,80}") {
            Accounts::parse(&text, &text).user(0);
        }
    }
}
