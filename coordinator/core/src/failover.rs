//! Who reigns: roles, epochs, and the checks before a promotion. PURE.
//!
//! Invariant: an epoch heard is never unheard; a coordinator that has heard a higher epoch than its own does not
//! reign; a takeover takes the highest number ever heard plus one.

use muster_common::ids::{CoordinatorId, Epoch};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a coordinator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CoordinatorRole {
    /// Takes facts, decides, pages.
    Primary,
    /// Applies the primary's journal; decides nothing.
    Standby,
    /// Was primary, has heard a higher epoch, does nothing.
    Fenced,
}

impl CoordinatorRole {
    /// The word in the store, in metrics and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Fenced => "fenced",
        }
    }
}

impl fmt::Display for CoordinatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for CoordinatorRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Primary, Self::Standby, Self::Fenced]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("unknown role {text:?}"))
    }
}

/// Role and epochs of one coordinator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// What it is.
    pub role: CoordinatorRole,
    /// Its own epoch, if it ever reigned.
    pub own: Option<Epoch>,
    /// The highest epoch it has heard, its own included.
    pub highest: Option<Epoch>,
}

/// What hearing an epoch changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Nothing new.
    Known,
    /// The highest so far: to be remembered before anything else is done.
    Higher,
    /// The highest so far, and this coordinator reigned: it stops now.
    Fences,
}

impl Reign {
    /// The role to begin with, from what the store remembers and what the config says.
    ///
    /// What the store remembers wins over the config: a promoted standby stays primary although its config still
    /// names whom it followed, and a standby never becomes primary because a line is missing.
    pub fn at_start(
        remembered: Option<CoordinatorRole>,
        own: Option<Epoch>,
        highest: Option<Epoch>,
        follows_somebody: bool,
    ) -> Self {
        let outdone = highest > own;
        let role = match (remembered, follows_somebody) {
            (Some(CoordinatorRole::Primary), _) if !outdone => CoordinatorRole::Primary,
            (None, false) if !outdone => CoordinatorRole::Primary,
            (Some(CoordinatorRole::Primary | CoordinatorRole::Fenced) | None, false) => CoordinatorRole::Fenced,
            (Some(CoordinatorRole::Standby), false) | (_, true) => CoordinatorRole::Standby,
        };
        let highest = highest.max(own.clone());
        Self { role, own, highest }
    }

    /// Hears an epoch that was proven.
    pub fn hear(&mut self, epoch: &Epoch) -> Heard {
        if self.highest.as_ref().is_some_and(|highest| highest >= epoch) {
            return Heard::Known;
        }
        self.highest = Some(epoch.clone());
        if self.role == CoordinatorRole::Primary && self.own.as_ref() != Some(epoch) {
            self.role = CoordinatorRole::Fenced;
            return Heard::Fences;
        }
        Heard::Higher
    }

    /// The epoch that a takeover by `me` takes; `None` when the numbers are used up.
    pub fn next_epoch(&self, me: &CoordinatorId) -> Option<Epoch> {
        let number = self.highest.as_ref().map_or(0, |epoch| epoch.number).checked_add(1)?;
        Some(Epoch { number, coordinator: me.clone() })
    }
}

/// Whether the old primary answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldPrimary {
    /// It answers and reigns.
    Reigns,
    /// It answers, but does not reign (fenced, or a standby itself).
    Resigned,
    /// It does not answer, for this reason.
    Gone(String),
    /// Nobody is configured to be followed, so nobody was asked.
    NotAsked,
}

/// What is known when somebody asks for a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromotionFacts {
    /// Who is to be promoted.
    pub me: CoordinatorId,
    /// Its role and epochs.
    pub reign: Reign,
    /// The primary that the operator believes to replace.
    pub named: Option<CoordinatorId>,
    /// What the old primary says now.
    pub old_primary: OldPrimary,
    /// Journal index here.
    pub own_index: u64,
    /// The primary's newest index, as last heard by this process; `None` when it never heard the primary.
    pub primary_index: Option<u64>,
    /// Why the store is not fit, if so.
    pub store_problem: Option<String>,
}

/// One condition of a promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What should be so.
    pub what: &'static str,
    /// Why it is not; `None` when it is met.
    pub problem: Option<String>,
    /// `force` overrides it.
    pub can_force: bool,
}

impl Check {
    /// True when it is so.
    pub fn is_met(&self) -> bool {
        self.problem.is_none()
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            None => write!(f, "met: {}", self.what),
            Some(problem) => write!(f, "not met: {}: {problem}", self.what),
        }
    }
}

/// Every condition of a promotion, met or not, in the order in which a person should think of them.
pub fn promotion_checks(facts: &PromotionFacts) -> Vec<Check> {
    let check = |what, problem, can_force| Check { what, problem, can_force };
    vec![
        check("this coordinator is a standby", role_problem(facts), facts.reign.role == CoordinatorRole::Fenced),
        check("the named old primary is the one it followed", name_problem(facts), facts.reign.highest.is_none()),
        check("the old primary does not reign any more", reigns_problem(facts), true),
        check("it has everything the old primary had", lag_problem(facts), true),
        check("its own store is fit", facts.store_problem.clone(), true),
        check("there is a next epoch", epoch_problem(facts), false),
    ]
}

fn role_problem(facts: &PromotionFacts) -> Option<String> {
    match facts.reign.role {
        CoordinatorRole::Standby => None,
        CoordinatorRole::Primary => Some("it is the primary already".to_owned()),
        CoordinatorRole::Fenced => Some("it is fenced: let it follow the new primary first".to_owned()),
    }
}

fn name_problem(facts: &PromotionFacts) -> Option<String> {
    match (&facts.named, &facts.reign.highest) {
        (Some(named), Some(highest)) if named == &highest.coordinator => None,
        (named, Some(highest)) => {
            let named = named.as_ref().map_or("nobody".to_owned(), |named| format!("{:?}", named.as_str()));
            Some(format!("the primary last heard of is {:?}, {named} was named", highest.coordinator.as_str()))
        }
        (_, None) => Some("it has never heard of a primary".to_owned()),
    }
}

fn reigns_problem(facts: &PromotionFacts) -> Option<String> {
    match &facts.old_primary {
        OldPrimary::Reigns => {
            Some("it answers, and reigns: stop it first, or force and it will be fenced when it hears".to_owned())
        }
        OldPrimary::Resigned | OldPrimary::Gone(_) => None,
        OldPrimary::NotAsked => Some("nobody to ask: [failover] follow is not set".to_owned()),
    }
}

fn lag_problem(facts: &PromotionFacts) -> Option<String> {
    match facts.primary_index {
        None => Some("unknown: this process has not heard from the primary since it started".to_owned()),
        Some(index) if index > facts.own_index => {
            let behind = index - facts.own_index;
            Some(format!("{behind} journal entries behind (has {}, the primary had {index})", facts.own_index))
        }
        Some(_) => None,
    }
}

fn epoch_problem(facts: &PromotionFacts) -> Option<String> {
    facts.reign.next_epoch(&facts.me).is_none().then(|| "the highest number there is has been claimed".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> CoordinatorId {
        CoordinatorId::new(name).unwrap()
    }

    fn epoch(number: u64, name: &str) -> Epoch {
        Epoch { number, coordinator: id(name) }
    }

    fn reign(role: CoordinatorRole, own: Option<Epoch>, highest: Option<Epoch>) -> Reign {
        Reign { role, own, highest }
    }

    #[test]
    fn the_store_remembers_better_than_the_config() {
        use CoordinatorRole::{Fenced, Primary, Standby};
        let start = |remembered, own, highest, follows| Reign::at_start(remembered, own, highest, follows).role;
        let (first, second) = (Some(epoch(1, "a")), Some(epoch(2, "b")));
        assert_eq!(start(None, None, None, false), Primary);
        assert_eq!(start(None, None, None, true), Standby);
        // A promoted standby restarts as primary, although its config still follows.
        assert_eq!(start(Some(Primary), second.clone(), second.clone(), true), Primary);
        // An old primary that has heard: fenced, until it is told to follow.
        assert_eq!(start(Some(Primary), first.clone(), second.clone(), false), Fenced);
        assert_eq!(start(Some(Fenced), first.clone(), second.clone(), false), Fenced);
        assert_eq!(start(Some(Fenced), first.clone(), second.clone(), true), Standby);
        // A standby without `follow` does not reign by accident.
        assert_eq!(start(Some(Standby), None, first.clone(), false), Standby);
        assert_eq!(start(None, None, second, false), Fenced);
        assert_eq!(start(Some(Primary), first.clone(), first, false), Primary);
    }

    #[test]
    fn a_higher_epoch_fences_and_nothing_lower_is_heard() {
        let mut primary = reign(CoordinatorRole::Primary, Some(epoch(3, "a")), Some(epoch(3, "a")));
        assert_eq!(primary.hear(&epoch(2, "z")), Heard::Known);
        assert_eq!(primary.hear(&epoch(3, "a")), Heard::Known);
        assert_eq!(primary.role, CoordinatorRole::Primary);
        assert_eq!(primary.hear(&epoch(3, "b")), Heard::Fences);
        assert_eq!(primary.role, CoordinatorRole::Fenced);
        assert_eq!(primary.next_epoch(&id("a")), Some(epoch(4, "a")));
        let mut standby = reign(CoordinatorRole::Standby, None, None);
        assert_eq!(standby.hear(&epoch(7, "a")), Heard::Higher);
        assert_eq!(standby.role, CoordinatorRole::Standby);
        assert_eq!(standby.next_epoch(&id("b")), Some(epoch(8, "b")));
        standby.highest = Some(epoch(u64::MAX, "a"));
        assert_eq!(standby.next_epoch(&id("b")), None);
    }

    fn ready() -> PromotionFacts {
        PromotionFacts {
            me: id("b"),
            reign: reign(CoordinatorRole::Standby, None, Some(epoch(1, "a"))),
            named: Some(id("a")),
            old_primary: OldPrimary::Gone("connection refused".into()),
            own_index: 9,
            primary_index: Some(9),
            store_problem: None,
        }
    }

    fn unmet(facts: &PromotionFacts) -> Vec<(String, bool)> {
        let checks = promotion_checks(facts);
        checks.iter().filter(|check| !check.is_met()).map(|check| (check.to_string(), check.can_force)).collect()
    }

    #[test]
    fn a_caught_up_standby_of_a_dead_primary_may() {
        assert_eq!(unmet(&ready()), []);
        assert_eq!(unmet(&PromotionFacts { old_primary: OldPrimary::Resigned, ..ready() }), []);
    }

    #[test]
    fn each_condition_refuses_by_itself() {
        let cases = [
            (PromotionFacts { named: Some(id("c")), ..ready() }, "\"c\" was named", false),
            (PromotionFacts { named: None, ..ready() }, "nobody was named", false),
            (PromotionFacts { old_primary: OldPrimary::Reigns, ..ready() }, "reigns", true),
            (PromotionFacts { old_primary: OldPrimary::NotAsked, ..ready() }, "nobody to ask", true),
            (PromotionFacts { primary_index: None, ..ready() }, "unknown", true),
            (PromotionFacts { primary_index: Some(12), ..ready() }, "3 journal entries behind", true),
            (PromotionFacts { store_problem: Some("disk full".into()), ..ready() }, "disk full", true),
            (
                PromotionFacts { reign: Reign { role: CoordinatorRole::Primary, ..ready().reign }, ..ready() },
                "already",
                false,
            ),
            (
                PromotionFacts { reign: Reign { role: CoordinatorRole::Fenced, ..ready().reign }, ..ready() },
                "fenced",
                true,
            ),
        ];
        for (facts, problem, can_force) in cases {
            let unmet = unmet(&facts);
            let [(text, force)] = unmet.as_slice() else { panic!("{problem}: {unmet:?}") };
            assert!(text.starts_with("not met: ") && text.contains(problem), "{text}");
            assert_eq!(*force, can_force, "{text}");
        }
    }

    proptest::proptest! {
        /// Whatever is heard in whatever order, a primary that did not hear its own number last is fenced, and the next
        /// epoch is above everything heard.
        #[test]
        fn epochs_only_rise(heard in proptest::collection::vec((0u64..5, "[a-c]"), 0..12)) {
            let own = epoch(2, "b");
            let mut me = reign(CoordinatorRole::Primary, Some(own.clone()), Some(own.clone()));
            let heard: Vec<_> = heard.into_iter().map(|(number, name)| epoch(number, &name)).collect();
            for one in &heard {
                me.hear(one);
            }
            let outdone = heard.iter().any(|one| one > &own);
            proptest::prop_assert_eq!(me.role == CoordinatorRole::Fenced, outdone);
            let next = me.next_epoch(&id("a")).unwrap();
            proptest::prop_assert!(heard.iter().all(|one| &next > one) && next > own);
        }
    }
}
