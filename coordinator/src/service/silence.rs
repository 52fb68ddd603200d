//! `SilenceService`: what operators hold back.

use super::caller::{ACTORS, READERS, allow};
use super::paging::{PageRequest, bad_token};
use super::status_of;
use crate::runtime::{Handle, View};
use muster_common::ids::AgentName;
use muster_common::limits::{LABEL_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, SUMMARY_BYTES_MAX, clip};
use muster_common::reason::Reason;
use muster_common::time::Timestamp;
use muster_coordinator_core::entry::Fact;
use muster_coordinator_core::explain;
use muster_coordinator_core::freeze::{FREEZES_MAX, Freeze, FreezeScope, id};
use muster_coordinator_core::silence::{Matchers, PATTERNS_MAX, SILENCES_MAX, Silence, SilenceKind, fits, index_of};
use muster_proto::convert::{bounded, timestamp, timestamp_to_wire};
use muster_proto::v1;
use muster_proto::v1::set_freeze_request::Change;
use muster_proto::v1::silence_service_server::SilenceService;
use std::collections::BTreeSet;
use std::time::Duration;
use tonic::{Request, Response, Status};

/// Names in one scope; beyond it a label says it better.
const SCOPE_AGENTS_MAX: usize = 256;
/// A freeze without end is lifted by hand; one that ends by itself does so within a year.
const TTL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A cause key names a host, a service and a subject, which may be a long path.
const CAUSE_BYTES_MAX: usize = 1024;
/// Incidents named in one silence; `ListIncidents` has them all.
const HELD_NAMED_MAX: usize = 1000;

/// Serves operators.
#[derive(Debug, Clone)]
pub struct SilenceApi {
    handle: Handle,
}

impl SilenceApi {
    /// Asks the loop behind `handle`.
    pub fn new(handle: Handle) -> Self {
        Self { handle }
    }

    async fn freezes(&self) -> Result<Vec<Freeze>, Status> {
        let read = |view: &View<'_>| view.state.freezes().cloned().collect();
        self.handle.query(read).await.map_err(|error| status_of(&error))
    }

    async fn silence(&self, index: u64) -> Result<Option<v1::Silence>, Status> {
        let read = move |view: &View<'_>| {
            let past = view.state.past_silences().find(|silence| index_of(&silence.id) == Some(index));
            let current = view.state.silences().find(|(known, _)| *known == index).map(|(_, silence)| silence);
            current.or(past).map(|silence| silence_to_wire(view, silence))
        };
        self.handle.query(read).await.map_err(|error| status_of(&error))
    }

    async fn submit(&self, fact: Fact) -> Result<u64, Status> {
        Ok(self.handle.submit(fact).await.map_err(|error| status_of(&error))?.trace)
    }
}

#[tonic::async_trait]
impl SilenceService for SilenceApi {
    async fn set_freeze(
        &self,
        request: Request<v1::SetFreezeRequest>,
    ) -> Result<Response<v1::SetFreezeResponse>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let known = self.freezes().await?;
        let freeze = match request.into_inner().change {
            Some(Change::Freeze(new)) => {
                if known.len() >= FREEZES_MAX {
                    return Err(Status::resource_exhausted(format!(
                        "{FREEZES_MAX} freezes hold already: lift some first"
                    )));
                }
                let (scope, reason) =
                    (scope(new.scope.unwrap_or_default())?, bounded("reason", &new.reason, SUMMARY_BYTES_MAX)?);
                if reason.trim().is_empty() {
                    return Err(Status::invalid_argument(
                        "reason is empty: say why, it is told to everybody who is stopped",
                    ));
                }
                let ttl = new.ttl.map(ttl_of).transpose()?;
                let now = self.handle.now();
                let expires = ttl.map(|ttl| now + ttl);
                let fact = Fact::FreezeSet { by, scope, reason, expires };
                let index = self.submit(fact).await?;
                let set = self.freezes().await?.into_iter().find(|freeze| freeze.id == id(index));
                set.ok_or_else(|| Status::resource_exhausted("too many freezes were set at once: lift some first"))?
            }
            Some(Change::LiftId(lifted)) => {
                let lifted = clip(&lifted, NAME_BYTES_MAX);
                let known = known.into_iter().find(|freeze| freeze.id == lifted);
                let freeze = known.ok_or_else(|| {
                    Status::not_found(format!("no freeze {lifted:?} holds: see ListFreezes (musterctl freeze list)"))
                })?;
                let index = freeze.id.trim_start_matches("FRZ-").parse().map_err(|_| Status::internal("not an id"))?;
                self.submit(Fact::FreezeLifted { by, index }).await?;
                freeze
            }
            None => {
                return Err(Status::invalid_argument("nothing is asked for: give a freeze, or the id of one to lift"));
            }
        };
        Ok(Response::new(v1::SetFreezeResponse { freeze: Some(wire(&freeze)) }))
    }

    async fn list_freezes(
        &self,
        request: Request<v1::ListFreezesRequest>,
    ) -> Result<Response<v1::ListFreezesResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let (wanted, after) = listed_after(request.page_size, &request.page_token)?;
        let freezes = self.freezes().await?;
        let keyed = freezes.iter().map(|freeze| (freeze_order(freeze), freeze));
        let page = wanted.cut(keyed, after.as_ref(), token, wire);
        Ok(Response::new(v1::ListFreezesResponse {
            freezes: page.items,
            next_page_token: page.next_token,
            total_size: page.total,
        }))
    }

    async fn create_silence(
        &self,
        request: Request<v1::CreateSilenceRequest>,
    ) -> Result<Response<v1::Silence>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let request = request.into_inner();
        let kind = kind(request.kind)?;
        let matchers = matchers(request.matchers.unwrap_or_default())?;
        let reason = bounded("reason", &request.reason, SUMMARY_BYTES_MAX)?;
        if reason.trim().is_empty() {
            return Err(Status::invalid_argument("reason is empty: say why, whoever is paged later reads it"));
        }
        let (now, ttl) = (
            self.handle.now(),
            request.ttl.ok_or_else(|| {
                Status::invalid_argument("ttl is missing: a silence ends by itself, say after how long")
            })?,
        );
        let ttl = ttl_of(ttl)?;
        let starts = request.start_time.map(|start| start_within_a_year(start, now)).transpose()?.unwrap_or(now);
        let full = |view: &View<'_>| view.state.silences().count() >= SILENCES_MAX;
        if self.handle.query(full).await.map_err(|error| status_of(&error))? {
            return Err(too_many_silences());
        }
        let fact = Fact::SilenceSet { by, kind, matchers, reason, starts, ends: starts + ttl };
        let index = self.submit(fact).await?;
        let made = self.silence(index).await?.ok_or_else(too_many_silences)?;
        let doubts = move |view: &View<'_>| {
            let known = view.state.silences().find(|(known, _)| *known == index);
            known.map(|(_, silence)| explain::fits_nothing(view.state, &silence.matchers)).unwrap_or_default()
        };
        let notes = self.handle.query(doubts).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::Silence { notes, ..made }))
    }

    async fn list_silences(
        &self,
        request: Request<v1::ListSilencesRequest>,
    ) -> Result<Response<v1::ListSilencesResponse>, Status> {
        allow(&request, READERS)?;
        let request = request.into_inner();
        let (wanted, after) = listed_after(request.page_size, &request.page_token)?;
        let with_past = request.include_expired;
        let read = move |view: &View<'_>| {
            let past = view.state.past_silences().filter(|_| with_past);
            let all = past.chain(view.state.silences().map(|(_, silence)| silence));
            let keyed = all.map(|silence| (silence_order(silence), silence));
            wanted.cut(keyed, after.as_ref(), token, |silence| silence_to_wire(view, silence))
        };
        let page = self.handle.query(read).await.map_err(|error| status_of(&error))?;
        Ok(Response::new(v1::ListSilencesResponse {
            silences: page.items,
            next_page_token: page.next_token,
            total_size: page.total,
        }))
    }

    async fn expire_silence(
        &self,
        request: Request<v1::ExpireSilenceRequest>,
    ) -> Result<Response<v1::Silence>, Status> {
        let by = allow(&request, ACTORS)?.name();
        let id = clip(&request.into_inner().id, NAME_BYTES_MAX);
        let unknown = || Status::not_found(format!("no silence {id:?}: see ListSilences (musterctl silence list)"));
        let index = index_of(&id).ok_or_else(unknown)?;
        let known = self.silence(index).await?.ok_or_else(unknown)?;
        if known.state() == v1::SilenceState::Expired {
            return Err(Status::failed_precondition(format!("{id} is over already: nothing is held back by it")));
        }
        self.submit(Fact::SilenceExpired { by, index }).await?;
        self.silence(index).await?.map(Response::new).ok_or_else(unknown)
    }
}

/// Oldest first; the journal's index tells those of one moment apart.
type Order = (i64, u64);

fn silence_order(silence: &Silence) -> Order {
    (silence.created.unix_ms(), index_of(&silence.id).unwrap_or_default())
}

fn freeze_order(freeze: &Freeze) -> Order {
    (freeze.created.unix_ms(), freeze.id.trim_start_matches("FRZ-").parse().unwrap_or_default())
}

fn token((created_ms, index): &Order) -> String {
    format!("{created_ms}/{index}")
}

/// What was asked for, and behind which one it begins.
fn listed_after(size: i32, page_token: &str) -> Result<(PageRequest, Option<Order>), Status> {
    let wanted = PageRequest::new(size, page_token)?;
    let after = wanted.after().map(|token| {
        let (created_ms, index) = token.split_once('/').ok_or_else(bad_token)?;
        let order = (created_ms.parse().map_err(|_| bad_token())?, index.parse().map_err(|_| bad_token())?);
        Ok::<Order, Status>(order)
    });
    let after = after.transpose()?;
    Ok((wanted, after))
}

fn too_many_silences() -> Status {
    Status::resource_exhausted(format!("{SILENCES_MAX} silences hold or are to come: expire some first"))
}

fn kind(value: i32) -> Result<SilenceKind, Status> {
    match v1::SilenceKind::try_from(value) {
        Ok(v1::SilenceKind::Unspecified | v1::SilenceKind::Silence) => Ok(SilenceKind::Silence),
        Ok(v1::SilenceKind::Maintenance) => Ok(SilenceKind::Maintenance),
        Err(_) => Err(Status::invalid_argument(format!("kind has the unknown value {value}"))),
    }
}

fn start_within_a_year(start: prost_types::Timestamp, now: Timestamp) -> Result<Timestamp, Status> {
    let start = timestamp(&start);
    if start > now + TTL_MAX {
        return Err(Status::invalid_argument("start_time is more than a year away"));
    }
    Ok(start.max(now))
}

fn matchers(matchers: v1::SilenceMatchers) -> Result<Matchers, Status> {
    let patterns = |what: &'static str, patterns: Vec<String>, bytes_max: usize| {
        if patterns.len() > PATTERNS_MAX {
            return Err(Status::invalid_argument(format!("matchers.{what} has more than {PATTERNS_MAX} entries")));
        }
        let each = patterns.iter().map(|pattern| match pattern.as_str() {
            "" => Err(Status::invalid_argument(format!("matchers.{what} has an empty entry: \"*\" stands for all"))),
            pattern => Ok(bounded(what, pattern, bytes_max)?),
        });
        each.collect::<Result<BTreeSet<String>, Status>>()
    };
    if matchers.labels.len() > LABELS_MAX {
        return Err(Status::invalid_argument(format!("matchers.labels has more than {LABELS_MAX} entries")));
    }
    let labels = matchers.labels.iter().map(|(key, value)| {
        Ok::<_, Status>((
            bounded("a label's key", key, LABEL_BYTES_MAX)?,
            bounded("a label's value", value, LABEL_BYTES_MAX)?,
        ))
    });
    let labels = labels.collect::<Result<_, _>>()?;
    let reasons = patterns("reasons", matchers.reasons, NAME_BYTES_MAX)?;
    for pattern in &reasons {
        if !Reason::ALL.iter().any(|reason| fits(pattern, reason.as_str())) {
            let hint = pattern.parse::<Reason>().err().map(|error| error.to_string()).unwrap_or_default();
            return Err(Status::invalid_argument(format!("matchers.reasons fits no reason: {hint}")));
        }
    }
    let names = |what: &'static str, names: Vec<String>| {
        let found = patterns(what, names, NAME_BYTES_MAX)?;
        let odd = |name: &&String| name.strip_suffix('*').unwrap_or(name).contains('*');
        match found.iter().find(odd) {
            Some(odd) => Err(Status::invalid_argument(format!(
                "matchers.{what} has {odd:?}: only the end of a name may be left open, such as \"web-*\""
            ))),
            None => Ok(found),
        }
    };
    let found = Matchers {
        agents: names("agents", matchers.agents)?,
        labels,
        services: names("services", matchers.services)?,
        reasons,
        causes: patterns("causes", matchers.causes, CAUSE_BYTES_MAX)?,
    };
    if found.is_empty() {
        return Err(Status::invalid_argument(
            "matchers are empty and would hold everything back: name agents, labels, services, reasons or causes",
        ));
    }
    Ok(found)
}

fn silence_to_wire(view: &View<'_>, silence: &Silence) -> v1::Silence {
    let state = match (silence.ended, silence.active) {
        (Some(_), _) => v1::SilenceState::Expired,
        (None, true) => v1::SilenceState::Active,
        (None, false) => v1::SilenceState::Pending,
    };
    let kind = match silence.kind {
        SilenceKind::Silence => v1::SilenceKind::Silence,
        SilenceKind::Maintenance => v1::SilenceKind::Maintenance,
    };
    let strings = |patterns: &BTreeSet<String>| patterns.iter().cloned().collect();
    let matchers = v1::SilenceMatchers {
        agents: strings(&silence.matchers.agents),
        labels: silence.matchers.labels.clone().into_iter().collect(),
        services: strings(&silence.matchers.services),
        reasons: strings(&silence.matchers.reasons),
        causes: strings(&silence.matchers.causes),
    };
    let ends_soon = silence.active && view.state.silences_ending(view.now).any(|(_, ending)| ending.id == silence.id);
    let held = silence.holds.iter().filter_map(|cause| view.state.unresolved(cause));
    v1::Silence {
        id: silence.id.clone(),
        kind: kind.into(),
        state: state.into(),
        matchers: Some(matchers),
        reason: silence.reason.clone(),
        created_by: silence.by.clone(),
        create_time: Some(timestamp_to_wire(silence.created)),
        start_time: Some(timestamp_to_wire(silence.starts)),
        end_time: Some(timestamp_to_wire(silence.ended.unwrap_or(silence.ends))),
        expired_by: silence.ended_by.clone().unwrap_or_default(),
        incidents: held.take(HELD_NAMED_MAX).map(|incident| incident.number.clone()).collect(),
        ends_soon,
        notes: Vec::new(),
    }
}

/// As it is told to operators and to the agents it concerns.
pub(super) fn wire(freeze: &Freeze) -> v1::Freeze {
    let scope = v1::FreezeScope {
        agents: freeze.scope.agents.iter().map(ToString::to_string).collect(),
        labels: freeze.scope.labels.clone().into_iter().collect(),
    };
    v1::Freeze {
        id: freeze.id.clone(),
        scope: Some(scope),
        reason: freeze.reason.clone(),
        created_by: freeze.by.clone(),
        create_time: Some(timestamp_to_wire(freeze.created)),
        expire_time: freeze.expires.map(timestamp_to_wire),
    }
}

fn scope(scope: v1::FreezeScope) -> Result<FreezeScope, Status> {
    if scope.agents.len() > SCOPE_AGENTS_MAX || scope.labels.len() > LABELS_MAX {
        return Err(Status::invalid_argument(format!(
            "a scope has at most {SCOPE_AGENTS_MAX} agents and {LABELS_MAX} labels"
        )));
    }
    let agents = scope.agents.iter().map(|name| {
        AgentName::new(clip(name, NAME_BYTES_MAX + 1)).map_err(|error| Status::invalid_argument(error.to_string()))
    });
    let labels = scope.labels.iter().map(|(key, value)| {
        Ok::<_, Status>((
            bounded("a label's key", key, LABEL_BYTES_MAX)?,
            bounded("a label's value", value, LABEL_BYTES_MAX)?,
        ))
    });
    Ok(FreezeScope { agents: agents.collect::<Result<_, _>>()?, labels: labels.collect::<Result<_, _>>()? })
}

fn ttl_of(ttl: prost_types::Duration) -> Result<Duration, Status> {
    let length = Duration::try_from(ttl).ok().filter(|length| !length.is_zero() && *length <= TTL_MAX);
    length.ok_or_else(|| Status::invalid_argument("ttl is not between a moment and a year"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_that_is_a_letter_is_refused() {
        let names = |text: &str| vec![text.to_owned()];
        for pattern in ["*b", "w*b", "**"] {
            for wire in [
                v1::SilenceMatchers { agents: names(pattern), ..Default::default() },
                v1::SilenceMatchers { services: names(pattern), ..Default::default() },
            ] {
                let refused = matchers(wire).unwrap_err();
                assert!(refused.message().contains("only the end"), "{pattern}: {}", refused.message());
            }
        }
        // A path may have one.
        let wire = v1::SilenceMatchers { causes: names("host/a/file/spl//a*b"), ..Default::default() };
        assert!(matchers(wire).is_ok());
        let wire = v1::SilenceMatchers { agents: names("web-*"), services: names("*"), ..Default::default() };
        assert!(matchers(wire).is_ok());
    }
}
