//! The causes by key, and an index of those that are worse while their service restarts in a storm: each restart asks for
//! them, on each host of its storm.
//!
//! Boxed: a map's node makes room for eleven of them, and is moved and searched as a whole. The index follows from the
//! keys, and is not written.

use super::{Cause, Keyed};
use crate::cause;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};

/// Families of a host's cause keys that are indexed: what holds a lock is worse meanwhile.
const FAMILIES: [&str; 2] = ["lock", "repo_locked"];

/// See the head of the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Causes {
    by_key: Keyed<Box<Cause>>,
    /// Keys of the indexed families, by service and agent.
    locks: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    /// Agents on which a service has, or had, a storm of its own, by service.
    storms: BTreeMap<String, BTreeSet<String>>,
}

/// A place in the map that may be empty.
pub(crate) struct Slot<'a, K> {
    causes: &'a mut Causes,
    key: K,
}

impl<'a, K: AsRef<str>> Slot<'a, K> {
    /// The cause; a new one that holds nothing where there was none.
    pub(crate) fn or_default(self) -> &'a mut Cause {
        let Causes { by_key, locks, .. } = self.causes;
        let key = self.key.as_ref();
        by_key.get_or_insert_with(key, || {
            if let Some((agent, service)) = locked(key) {
                let of_service = locks.entry(service.to_owned()).or_default();
                of_service.entry(agent.to_owned()).or_default().insert(key.to_owned());
            }
            Box::default()
        })
    }
}

/// Agent and service of a key of the indexed families: `host/AGENT/FAMILY/SERVICE/SUBJECT`.
fn locked(key: &str) -> Option<(&str, &str)> {
    let (agent, rest) = cause::parts_of_host(key)?;
    let (service, _) =
        FAMILIES.iter().find_map(|family| rest.strip_prefix(family)?.strip_prefix('/')?.split_once('/'))?;
    Some((agent, service))
}

/// Agent and service of `host/AGENT/service/SERVICE`.
fn served(key: &str) -> Option<(&str, &str)> {
    let (agent, rest) = cause::parts_of_host(key)?;
    Some((agent, rest.strip_prefix("service/")?))
}

impl Causes {
    pub(crate) fn get(&self, key: &str) -> Option<&Cause> {
        self.by_key.get(key).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Cause> {
        self.by_key.get_mut(key).map(Box::as_mut)
    }

    /// Looks the key up once; it is copied where it is new.
    pub(crate) fn entry<K: AsRef<str>>(&mut self, key: K) -> Slot<'_, K> {
        Slot { causes: self, key }
    }

    pub(crate) fn remove(&mut self, key: &str) {
        if self.by_key.remove(key).is_none() {
            return;
        }
        if let Some((agent, service)) = served(key)
            && let Some(agents) = self.storms.get_mut(service)
        {
            agents.remove(agent);
            if agents.is_empty() {
                self.storms.remove(service);
            }
        }
        let Some((agent, service)) = locked(key) else { return };
        let Some(of_service) = self.locks.get_mut(service) else { return };
        let Some(own) = of_service.get_mut(agent) else { return };
        own.remove(key);
        if own.is_empty() {
            of_service.remove(agent);
        }
        if of_service.is_empty() {
            self.locks.remove(service);
        }
    }

    /// The cause gets a storm.
    pub(crate) fn storms(&mut self, key: &str) {
        if let Some((agent, service)) = served(key) {
            self.storms.entry(service.to_owned()).or_default().insert(agent.to_owned());
        }
    }

    /// Agents on which a service may have a storm of its own; on others it has none.
    pub(crate) fn may_storm(&self, service: &str) -> Option<&BTreeSet<String>> {
        self.storms.get(service)
    }

    /// By key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Cause)> {
        self.by_key.iter().map(|(key, cause)| (key, cause.as_ref()))
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = &String> {
        self.by_key.keys()
    }

    /// Those whose keys begin so, by key.
    pub(crate) fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a Cause)> {
        self.by_key.starting_with(prefix).map(|(key, cause)| (key, cause.as_ref()))
    }

    /// Keys of the locks of a service on some hosts.
    pub(crate) fn locks<'a>(
        &'a self,
        service: &str,
        mut agents: impl Iterator<Item = &'a str>,
    ) -> impl Iterator<Item = &'a String> {
        let of_service = self.locks.get(service);
        let own = std::iter::from_fn(move || Some(of_service?.get(agents.next()?)));
        own.flatten().flatten()
    }
}

impl PartialEq for Causes {
    fn eq(&self, other: &Self) -> bool {
        self.by_key == other.by_key
    }
}

impl Serialize for Causes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.by_key.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Causes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut causes = Self::default();
        for (key, cause) in BTreeMap::<String, Cause>::deserialize(deserializer)? {
            if cause.storm.is_some() {
                causes.storms(&key);
            }
            *causes.entry(key).or_default() = cause;
        }
        Ok(causes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks(causes: &Causes) -> Vec<&str> {
        causes.locks("spl", ["web-1", "web-2"].into_iter()).map(String::as_str).collect()
    }

    #[test]
    fn locks_are_found_by_service_and_host() {
        let mut causes = Causes::default();
        let own = ["host/web-1/lock/spl//var/a.db", "host/web-1/repo_locked/spl/r", "host/web-2/lock/spl/"];
        let others = ["host/web-1/lock/spl2/a", "host/web-3/lock/spl/a", "host/web-1/sqlite/spl/lock/spl/a", "fleet/x"];
        for key in own.iter().chain(&others) {
            causes.entry((*key).to_owned()).or_default();
        }
        assert_eq!(locks(&causes), own);
        let read: Causes = serde_json::from_str(&serde_json::to_string(&causes).unwrap()).unwrap();
        assert_eq!((locks(&read), read == causes), (own.to_vec(), true));
        own.iter().chain(&others).for_each(|key| causes.remove(key));
        assert!(causes.locks.is_empty() && causes.by_key.is_empty());
    }

    #[test]
    fn a_storm_is_looked_for_where_there_was_one() {
        let mut causes = Causes::default();
        let key = "host/web-1/service/spl";
        for key in [key, "host/web-2/service/spl", "fleet/restart_storm/spl"] {
            causes.entry(key.to_owned()).or_default();
        }
        assert_eq!(causes.may_storm("spl"), None);
        let (began, last) = Default::default();
        let (agents, symptoms, down) = Default::default();
        let (restarts, index, active) = (3, 1, true);
        let received = last;
        let storm = crate::state::Storm { began, last, restarts, agents, received, active, index, symptoms, down };
        causes.entry(key.to_owned()).or_default().storm = Some(Box::new(storm));
        causes.storms(key);
        let read: Causes = serde_json::from_str(&serde_json::to_string(&causes).unwrap()).unwrap();
        for mut causes in [causes, read] {
            assert_eq!(causes.may_storm("spl"), Some(&BTreeSet::from(["web-1".to_owned()])));
            causes.remove(key);
            assert_eq!(causes.may_storm("spl"), None);
        }
    }
}
