//! Counts callers that are refused or that call in a loop, by identity (or address, where none was proven) and route,
//! and makes a fact of it at most once a minute for each.
//!
//! Outside of State, since anybody can be refused as often as he likes; bounded, and never in the way of a call.

use crate::runtime::{CoordinatorRole, Handle};
use crate::service::caller::{Caller, Who};
use muster_common::limits::clip;
use muster_coordinator_core::entry::Fact;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Code;
use tonic::codegen::http::{Request, Response};

/// Callers counted at once. Overflow rule: one more is counted among the others.
const CALLERS_MAX: usize = 1024;
/// Facts of one minute: the most refused first.
const FACTS_MAX: usize = 64;
/// Fewer refusals than this are no fact yet: a person who mistypes, a scanner that looks once.
const REFUSALS_MIN: u64 = 5;
/// Minutes for which fewer are remembered.
const AGE_MAX: u32 = 10;
/// Between two facts about one caller.
const INTERVAL: Duration = Duration::from_secs(60);
/// Routes of one caller told apart: about as many as the contract has. Overflow rule: one more counts for the caller alone.
const ROUTES_MAX: usize = 96;
/// Bytes of a route; the longest of the contract is half of it.
const ROUTE_BYTES_MAX: usize = 96;
/// Who is counted when there is no room for more.
const OTHERS: &str = "others";
/// The route of what comes before any call.
const HANDSHAKE: &str = "handshake";

/// Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Refused(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    refusals: BTreeMap<(String, String), Entry>,
    calls: BTreeMap<String, Calls>,
}

/// What one caller called since the last fact.
#[derive(Debug, Default)]
struct Calls {
    address: String,
    count: u64,
    routes: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Entry {
    address: String,
    why: String,
    count: u64,
    age: u32,
}

impl Refused {
    /// A handshake failed over what was presented. A peer that goes away in the middle presents nothing: a health check
    /// of a load balancer does so all day.
    pub fn handshake(&self, address: &str, why: &str) {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        self.note(host, address, HANDSHAKE, why);
    }

    /// A stream or a call of `caller` ended with `code`.
    pub fn call(&self, caller: &Caller, route: &str, code: Code, why: &str) {
        let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument);
        if refused {
            let why = if why.is_empty() { words(code) } else { why };
            self.note(&name(caller), &caller.address, route, why);
        }
    }

    /// A call began.
    fn began(&self, caller: &Caller, route: &str) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name(caller);
        if table.calls.len() < CALLERS_MAX || table.calls.contains_key(&name) {
            let known = table.calls.entry(name).or_default();
            known.address.clone_from(&caller.address);
            known.count += 1;
            let room = known.routes.len() < ROUTES_MAX;
            match known.routes.get_mut(route) {
                Some(count) => *count += 1,
                None if room => drop(known.routes.insert(route.to_owned(), 1)),
                None => {}
            }
        }
    }

    fn note(&self, caller: &str, address: &str, route: &str, why: &str) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (caller.to_owned(), clip(route, ROUTE_BYTES_MAX));
        let room = table.refusals.len() < CALLERS_MAX || table.refusals.contains_key(&key);
        let key = if room { key } else { (OTHERS.to_owned(), key.1) };
        // Routes of others are those of the contract, so that this stays bounded as well.
        let entry = table.refusals.entry(key).or_default();
        entry.count += 1;
        entry.address = address.to_owned();
        entry.why = clip(why, 128);
    }

    /// What is to be journaled of the last minute; `calls_max` of one caller are none too many.
    fn take(&self, calls_max: u64) -> Vec<Fact> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = std::mem::take(&mut table.calls);
        let mut told: Vec<((String, String), Entry)> = Vec::new();
        for (key, mut entry) in std::mem::take(&mut table.refusals) {
            entry.age += 1;
            if entry.count >= REFUSALS_MIN {
                told.push((key, entry));
            } else if entry.age < AGE_MAX {
                table.refusals.insert(key, entry);
            }
        }
        drop(table);
        let refused = |((caller, route), Entry { address, why, count, .. }): ((String, String), Entry)| {
            (count, Fact::CallsRefused { caller, address, route, why, count })
        };
        let looped = |(caller, Calls { address, count, routes }): (String, Calls)| {
            let most = routes.into_iter().max_by_key(|(_, count)| *count);
            let route = most.map(|(route, _)| route).unwrap_or_default();
            (count, Fact::CallsLooped { caller, address, route, count })
        };
        let loops = calls.into_iter().filter(|(_, calls)| calls.count > calls_max).map(looped);
        let mut facts: Vec<(u64, Fact)> = told.into_iter().map(refused).chain(loops).collect();
        facts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        facts.into_iter().take(FACTS_MAX).map(|(_, fact)| fact).collect()
    }
}

fn name(caller: &Caller) -> String {
    match &caller.who {
        Who::Certificate(identity) => identity.to_string(),
        Who::Local { uid } => format!("local:{uid}"),
    }
}

const fn words(code: Code) -> &'static str {
    match code {
        Code::PermissionDenied => "its role may not do this",
        Code::Unauthenticated => "it proves no identity",
        _ => "what it sends is malformed",
    }
}

/// Journals what was counted, once a minute, while this coordinator reigns.
pub async fn run(handle: Handle) {
    let stopping = handle.stopping();
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        tell(&handle).await;
    }
}

/// Journals what was counted since the last time.
pub async fn tell(handle: &Handle) {
    let calls_max = handle.query(|view| view.state.policy().signals.auth_abuse.calls_per_minute).await;
    // One that stops answers nothing.
    let Ok(calls_max) = calls_max else { return };
    let facts = handle.metrics().refused.take(u64::from(calls_max));
    if handle.role() == CoordinatorRole::Primary && !facts.is_empty() {
        // One that stops, or reigns no more, tells nobody.
        handle.submit_all(facts).await.ok();
    }
}

/// Watches the answers to calls.
#[derive(Debug, Clone)]
pub struct Watch(pub Refused);

impl<S> tower::Layer<S> for Watch {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { refused: self.0.clone(), inner }
    }
}

/// A service whose refusals are counted.
#[derive(Debug, Clone)]
pub struct Watched<S> {
    refused: Refused,
    inner: S,
}

impl<S, B, R> tower::Service<Request<B>> for Watched<S>
where
    S: tower::Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send,
    R: Send,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        let route = route(request.uri().path());
        if let Some(caller) = &caller {
            self.refused.began(caller, &route);
        }
        let (refused, answer) = (self.refused.clone(), self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await?;
            // A call that is refused has its status among the headers; a stream that ends later is counted where it is.
            let code = answer.headers().get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
            if let (Some(caller), Some(code)) = (caller, code) {
                refused.call(&caller, &route, code, "");
            }
            Ok(answer)
        })
    }
}

/// `FleetService.ListAgents` of `/muster.v1.FleetService/ListAgents`; what is not in the contract is all one.
fn route(path: &str) -> String {
    let known = path.strip_prefix("/muster.v1.").and_then(|path| path.split_once('/'));
    known.map_or_else(|| "unknown".to_owned(), |(service, call)| clip(&format!("{service}.{call}"), ROUTE_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of one caller within a minute.
    const MAX: u64 = 600;

    fn caller(uid: u32) -> Caller {
        Caller { who: Who::Local { uid }, address: "unix".to_owned() }
    }

    fn told(facts: &[Fact]) -> Vec<(String, String, u64)> {
        let one = |fact: &Fact| match fact {
            Fact::CallsRefused { caller, route, count, .. } | Fact::CallsLooped { caller, route, count, .. } => {
                (caller.clone(), route.clone(), *count)
            }
            other => panic!("{other:?}"),
        };
        facts.iter().map(one).collect()
    }

    #[test]
    fn refusals_are_told_once_with_their_number_and_few_only_when_they_add_up() {
        let refused = Refused::default();
        for _ in 0..7 {
            refused.handshake("10.0.0.9:4711", "certificate expired");
        }
        for _ in 0..4 {
            refused.call(&caller(7), "FleetService.ArchiveAgent", Code::PermissionDenied, "");
            refused.call(&caller(7), "FleetService.ListAgents", Code::Unavailable, "");
        }
        assert_eq!(told(&refused.take(MAX)), [("10.0.0.9".to_owned(), "handshake".to_owned(), 7)]);
        assert!(refused.take(MAX).is_empty(), "once");
        refused.call(&caller(7), "FleetService.ArchiveAgent", Code::PermissionDenied, "");
        let expected = ("local:7".to_owned(), "FleetService.ArchiveAgent".to_owned(), 5);
        assert_eq!(told(&refused.take(MAX)), [expected]);
    }

    #[test]
    fn few_are_forgotten_and_many_are_bounded() {
        let refused = Refused::default();
        refused.handshake("10.0.0.1:1", "x");
        for _ in 0..AGE_MAX {
            assert!(refused.take(MAX).is_empty());
        }
        assert!(refused.0.lock().unwrap().refusals.is_empty());
        for n in 0..5_000u32 {
            refused.handshake(&format!("10.{}.{}.1:1", n / 250, n % 250), "x");
        }
        assert!(refused.0.lock().unwrap().refusals.len() <= CALLERS_MAX + 1);
        let facts = told(&refused.take(MAX));
        assert_eq!(facts.first().map(|(caller, ..)| caller.as_str()), Some(OTHERS));
    }

    #[test]
    fn a_caller_in_a_loop_is_told() {
        let refused = Refused::default();
        let call = |count: u64, route: &str| (0..count).for_each(|_| refused.began(&caller(7), route));
        call(600, "FleetService.ListAgents");
        assert!(refused.take(MAX).is_empty(), "just enough");
        call(100, "FleetService.ListAgents");
        call(501, "FindingService.ListFindings");
        (0..500).for_each(|_| refused.began(&caller(8), "FleetService.ListAgents"));
        let facts = refused.take(MAX);
        assert!(matches!(facts.as_slice(), [Fact::CallsLooped { .. }]), "nobody refused it: {facts:?}");
        assert_eq!(told(&facts), [("local:7".to_owned(), "FindingService.ListFindings".to_owned(), 601)]);
        for n in 0..5_000u32 {
            refused.began(&caller(7), &format!("Made.Up{n}"));
        }
        assert!(refused.0.lock().unwrap().calls.values().all(|calls| calls.routes.len() <= ROUTES_MAX));
    }

    #[test]
    fn routes_are_those_of_the_contract() {
        assert_eq!(route("/muster.v1.FleetService/ListAgents"), "FleetService.ListAgents");
        assert_eq!(route("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"), "unknown");
        assert_eq!(route("/x"), "unknown");
    }
}
