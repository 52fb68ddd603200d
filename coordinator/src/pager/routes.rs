//! `[[route]]` of the coordinator's config: which receivers are told of what.

use super::config::{ReceiverConfig, unknown_receiver};
use muster_common::config::{Reader, Value};
use muster_common::ids::ServiceName;
use muster_common::limits::clip;
use muster_common::reason::Reason;
use muster_common::severity::Severity;
use muster_coordinator_core::policy::{Policy, Route};
use muster_coordinator_core::routing;
use std::fmt::Write;

/// Routes are asked one after the other at every decision.
pub const ROUTES_MAX: usize = 64;
/// Items of one condition.
const ITEMS_MAX: usize = 64;

/// Reads the routes and what the receivers say about each other into the policy; mistakes are noted in the reader. `names`
/// are those of all receivers, also of one with a mistake: a route to that one is none.
pub fn read_routes(root: &Reader<'_>, receivers: &[ReceiverConfig], names: &[String], policy: &mut Policy) {
    policy.receivers = receivers.iter().map(|receiver| receiver.name.clone()).collect();
    let fallbacks = receivers.iter().filter_map(|config| Some((config.name.clone(), config.fallback.clone()?)));
    policy.fallbacks = fallbacks.collect();
    let escalating = receivers.iter().filter(|config| config.escalates_itself);
    policy.self_escalating = escalating.map(|config| config.name.clone()).collect();
    let tables = root.tables("route");
    if let Some(table) = tables.get(ROUTES_MAX) {
        table.mistake("too many routes", &format!("expected at most {ROUTES_MAX}"));
    }
    policy.routes = tables.iter().map(|table| read_route(table, names)).collect();
    for (late, early) in routing::unreachable(policy) {
        if let Some(table) = tables.get(late) {
            let message = format!("this route is never reached: route {} before it takes all of it", early + 1);
            table.mistake(&message, "move it up, narrow the other one, or let that one `continue = true`");
        }
    }
    never_told(receivers, &tables, policy);
}

/// A receiver to which nothing leads is a page that somebody waits for in vain.
fn never_told(receivers: &[ReceiverConfig], tables: &[Reader<'_>], policy: &Policy) {
    let Some((_, last)) = policy.routes.iter().zip(tables).find(|(route, _)| takes_all(route)) else { return };
    for receiver in receivers {
        let routed = policy.routes.iter().any(|route| route.receivers.contains(&receiver.name));
        if !routed && !policy.fallbacks.values().any(|fallback| *fallback == receiver.name) {
            let message =
                format!("the receiver {:?} is never told: this route takes what no other does", receiver.name);
            last.mistake(&message, "name it in a route, or as a fallback");
        }
    }
}

fn takes_all(route: &Route) -> bool {
    let Route { severities, reasons, services, labels, .. } = route;
    severities.is_empty() && reasons.is_empty() && services.is_empty() && labels.is_empty()
}

fn read_route(table: &Reader<'_>, names: &[String]) -> Route {
    let reason = |text: &str| {
        let known = Reason::ALL.iter().find(|reason| reason.as_str() == text);
        known.copied().ok_or_else(|| format!("expected a reason code such as \"{}\"", Reason::ProcessDown))
    };
    let service = |text: &str| ServiceName::new(text).map(String::from).map_err(|error| error.to_string());
    let receivers = match table.required("receivers") {
        Some(value) => read_receivers(&value, names),
        None => Vec::new(),
    };
    Route {
        severities: one_or_many(table, "severity", |text| text.parse::<Severity>()).into_iter().collect(),
        reasons: one_or_many(table, "reason", reason).into_iter().collect(),
        services: one_or_many(table, "service", service).into_iter().collect(),
        labels: table.string_map("labels"),
        receivers,
        goes_on: table.boolean("continue").unwrap_or_default(),
    }
}

fn read_receivers(value: &Value<'_>, names: &[String]) -> Vec<String> {
    let items = value.items();
    if value.is_array() && items.is_empty() {
        value.mistake("a route that leads nowhere", "expected at least one receiver; to keep quiet, add a silence");
    }
    let mut found = Vec::new();
    for item in items {
        let Some(name) = item.string() else { continue };
        if !names.iter().any(|known| known == name) {
            unknown_receiver(&item, &clip(name, 64), names);
        }
        found.push(name.to_owned());
    }
    found
}

/// A string, or a list of them.
fn one_or_many<T>(table: &Reader<'_>, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
    let Some(value) = table.value(key) else { return Vec::new() };
    if !value.is_array() {
        return value.parsed(parse).into_iter().collect();
    }
    let items = value.items();
    if items.is_empty() || items.len() > ITEMS_MAX {
        value.mistake("a condition of a route", &format!("expected 1 to {ITEMS_MAX} of them"));
    }
    items.into_iter().filter_map(|item| item.parsed(&parse)).collect()
}

/// The routes that lead to a receiver, in words.
pub fn words(policy: &Policy, receiver: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    if policy.routes.is_empty() {
        found.push("everything".to_owned());
    }
    for (number, route) in policy.routes.iter().enumerate() {
        if route.receivers.iter().any(|name| name == receiver) {
            let goes_on = if route.goes_on { ", then on" } else { "" };
            found.push(format!("route {}: {}{goes_on}", number + 1, conditions(route)));
        }
    }
    if !policy.routes.is_empty() && !policy.routes.iter().any(takes_all) {
        found.push("what no route matches".to_owned());
    }
    for (failing, _) in policy.fallbacks.iter().filter(|(_, fallback)| *fallback == receiver) {
        found.push(format!("in place of {failing} while that fails"));
    }
    found
}

fn conditions(route: &Route) -> String {
    let mut text = String::new();
    let mut add = |name: &str, values: Vec<String>| {
        if !values.is_empty() {
            let gap = if text.is_empty() { "" } else { ", " };
            // Writing to a String cannot fail.
            write!(text, "{gap}{name} {}", values.join(" or ")).ok();
        }
    };
    add("severity", route.severities.iter().rev().map(ToString::to_string).collect());
    add("reason", route.reasons.iter().map(ToString::to_string).collect());
    add("service", route.services.iter().cloned().collect());
    add("label", route.labels.iter().map(|(name, value)| format!("{name}={value}")).collect());
    if text.is_empty() { "everything".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pager::read_receivers as receivers_of;
    use muster_common::config::{ConfigErrors, read};

    fn policy(routes: &str) -> Result<Policy, ConfigErrors> {
        let receivers = "[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://h/\"\n\
                         [[receiver.webhook]]\nname = \"chat\"\nurl = \"http://h/\"\n";
        let text = format!("{receivers}{routes}");
        read("c.toml", &text, |root| {
            let mut policy = Policy::default();
            let (receivers, names) = receivers_of(root);
            read_routes(root, &receivers, &names, &mut policy);
            policy
        })
    }

    #[test]
    fn routes_are_read_and_told_in_words() {
        let policy = policy(
            "[[route]]\nseverity = [\"sev0\", \"sev1\"]\nlabels = { role = \"db\" }\nreceivers = [\"ops\"]\n\
             continue = true\n[[route]]\nservice = \"spl\"\nreason = \"port_closed\"\nreceivers = [\"chat\"]\n",
        );
        let policy = policy.unwrap_or_else(|errors| panic!("{errors}"));
        let ops = ["route 1: severity sev0 or sev1, label role=db, then on", "what no route matches"];
        assert_eq!(words(&policy, "ops"), ops);
        assert_eq!(words(&policy, "chat")[0], "route 2: reason port_closed, service spl");
        assert!(policy.routes[0].goes_on && !policy.routes[1].goes_on);
        let all = self::policy("[[route]]\nreceivers = [\"ops\", \"chat\"]\n");
        let all = Policy { fallbacks: [("ops".to_owned(), "chat".to_owned())].into(), ..all.unwrap() };
        assert_eq!(words(&all, "ops"), ["route 1: everything"], "nothing is left that no route matches");
        let none = Policy { routes: Vec::new(), ..all };
        assert_eq!(words(&none, "chat"), ["everything", "in place of ops while that fails"]);
    }

    #[test]
    fn a_route_to_a_receiver_with_a_mistake_is_no_mistake() {
        let error = policy(
            "[[receiver.webhook]]\nname = \"ill\"\nurl = \"ftp://h/\"\n[[route]]\nservice = \"spl\"\nreceivers = [\"ill\"]\n",
        );
        let error = error.unwrap_err();
        assert_eq!(error.mistakes.len(), 1, "{error}");
    }

    #[test]
    fn each_rule_has_its_mistake() {
        for (routes, told) in [
            ("[[route]]\nreceivers = [\"opps\"]\n", "no receiver is named \"opps\""),
            ("[[route]]\nreceivers = []\n", "leads nowhere"),
            ("[[route]]\nseverity = \"sev1\"\n", "lacks the key \"receivers\""),
            ("[[route]]\nseverity = \"bad\"\nreceivers = [\"ops\"]\n", "bad value for"),
            ("[[route]]\nseverity = []\nreceivers = [\"ops\"]\n", "expected 1 to 64"),
            ("[[route]]\nreason = \"port_close\"\nreceivers = [\"ops\"]\n", "expected a reason code"),
            ("[[route]]\nservice = \"a/b\"\nreceivers = [\"ops\"]\n", "bad value for"),
            ("[[route]]\nreciever = \"x\"\nreceivers = [\"ops\", \"chat\"]\n", "unknown key \"reciever\""),
            (
                "[[route]]\nreceivers = [\"ops\", \"chat\"]\n[[route]]\nservice = \"spl\"\nreceivers = [\"ops\"]\n",
                "never reached: route 1",
            ),
            ("[[route]]\nreceivers = [\"ops\"]\n", "\"chat\" is never told"),
        ] {
            let error = policy(routes).unwrap_err().to_string();
            assert!(error.contains(told), "{told}: {error}");
        }
        let many = "[[route]]\nservice = \"spl\"\ncontinue = true\nreceivers = [\"ops\"]\n".repeat(ROUTES_MAX + 1);
        assert!(policy(&many).unwrap_err().to_string().contains("too many routes"));
    }
}
