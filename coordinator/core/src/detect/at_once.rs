//! What detectors of open conditions share: hosts counted at once, in their words and figures.

use crate::cause;
use crate::state::{Cause, MemberRef, State};
use muster_common::time::Timestamp;

/// Members looked at for when it began: of thousands any of the first will do.
const LOOKED_AT_MAX: usize = 64;

/// Figures of a group of conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AtOnce {
    /// Hosts with at least one of them open.
    pub(super) hosts: usize,
    /// When the first that is still open began, by observed time.
    pub(super) began: Timestamp,
    /// All of them were closed by hand.
    pub(super) dismissed: bool,
}

/// None when nothing is open.
pub(super) fn at_once(state: &State, cause: &Cause) -> Option<AtOnce> {
    if cause.agents.is_empty() {
        return None;
    }
    let opened = |member: &MemberRef| {
        let open = state.agent(&member.agent)?.open.get(member.key.as_ref()?)?;
        Some((open.opened, open.event_index))
    };
    let dismissed = cause.dismissed_index > 0
        && cause.members.values().filter_map(|member| opened(member)).all(|(_, index)| index <= cause.dismissed_index);
    let since = |member: &MemberRef| member.opened.0.or_else(|| opened(member).map(|(at, _)| at));
    let first = cause.members.values().take(LOOKED_AT_MAX).filter_map(|member| since(member)).min();
    Some(AtOnce { hosts: cause.agents.len(), began: first.unwrap_or(state.last_at()), dismissed })
}

/// The causes on the hosts that a group of conditions takes.
pub(super) fn host_causes(cause: &Cause) -> Vec<String> {
    let members = cause.members.values();
    members.filter_map(|member| Some(cause::of_finding(&member.agent, member.key.as_ref()?))).collect()
}
