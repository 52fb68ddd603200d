//! Puts the coordinator together: store, loop, ears, services, pagers, failover; and takes it apart in that order.

use crate::config::Config;
use crate::failover::{Failover, stand_up};
use crate::keepalive::Keepalive;
use crate::listen::{Accepted, Certificate, Door, bind_tls, bind_unix};
use crate::metrics::Metrics;
use crate::paging::Paging;
use crate::refused::{self, Watch};
use crate::runtime::{CoordinatorRole, Handle, Runtime, RuntimeError, Start, start};
use crate::service::agent_link::AgentLink;
use crate::service::failover::FailoverApi;
use crate::service::finding::FindingApi;
use crate::service::fleet::FleetApi;
use crate::service::incident::IncidentApi;
use crate::service::receivers::PagingApi;
use crate::service::replication::{Replication, forget_if_away};
use crate::service::silence::SilenceApi;
use anyhow::Context;
use muster_common::limits::LINK_MESSAGE_BYTES_MAX;
use muster_common::tls::{Credentials, TlsError};
use muster_proto::FILE_DESCRIPTOR_SET;
use muster_proto::v1::agent_link_service_server::{self, AgentLinkServiceServer};
use muster_proto::v1::failover_service_server::{self, FailoverServiceServer};
use muster_proto::v1::finding_service_server::{self, FindingServiceServer};
use muster_proto::v1::fleet_service_server::{self, FleetServiceServer};
use muster_proto::v1::incident_service_server::{self, IncidentServiceServer};
use muster_proto::v1::paging_service_server::{self, PagingServiceServer};
use muster_proto::v1::replication_service_server::{self, ReplicationServiceServer};
use muster_proto::v1::silence_service_server::{self, SilenceServiceServer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Streams on one connection: an agent has one, an operator's tool a handful of watches.
const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Bytes of one request's headers.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// Streams of one connection that its peer has reset and nobody has looked at yet; one more ends the connection.
const RESET_STREAMS_PENDING_MAX: usize = 32;
/// Streams of one connection that we reset because of what its peer sent; one more ends the connection.
const RESET_STREAMS_LOCAL_MAX: usize = 256;
/// Bytes of one request of an operator.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Served on a primary and on a standby; the agents' link on a primary only.
const SERVED_ALWAYS: &[&str] = &[
    fleet_service_server::SERVICE_NAME,
    finding_service_server::SERVICE_NAME,
    incident_service_server::SERVICE_NAME,
    silence_service_server::SERVICE_NAME,
    paging_service_server::SERVICE_NAME,
    failover_service_server::SERVICE_NAME,
    replication_service_server::SERVICE_NAME,
];
/// How long tasks may take to end before the process ends without them.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// A coordinator that runs.
#[derive(Debug)]
pub struct Coordinator {
    handle: Handle,
    runtime: Runtime,
    tasks: JoinSet<anyhow::Result<()>>,
    certificate: Arc<Certificate>,
    paging: Paging,
    grpc: SocketAddr,
    http: Option<SocketAddr>,
}

impl Coordinator {
    /// Starts everything; when this returns, every listener is open.
    pub async fn start(config: Config, credentials: Credentials) -> anyhow::Result<Self> {
        let certificate = Arc::new(Certificate::new(credentials.clone()).context("the certificate cannot serve")?);
        let paging = Paging::open(&config, &credentials)?;
        let keepalive = Keepalive::of(config.policy.liveness.heartbeat, config.policy.liveness.stale_after);
        let grpc_listener = bind_tls(config.listen.grpc, keepalive)
            .with_context(|| format!("cannot listen on {}", config.listen.grpc))?;
        let http_listener = match config.listen.http {
            Some(address) => {
                Some(TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?)
            }
            None => None,
        };
        let unix_listener = match &config.listen.unix {
            Some(path) => Some(bind_unix(path).await.with_context(|| format!("cannot listen on {}", path.display()))?),
            None => None,
        };
        let mut store = crate::store::open(&config.store_url)?;
        let standing = stand_up(store.as_mut(), &credentials, &config.failover).await?;
        tracing::info!(id = %standing.id, fleet = %standing.fleet, role = %standing.role, "starting");
        let metrics = Arc::new(Metrics::default());
        let policy = config.policy.clone();
        let begin = Start { store, standing, policy, metrics: Arc::clone(&metrics) };
        let (handle, runtime) = tokio::task::spawn_blocking(move || start(begin)).await??;

        for follower in handle.followers().into_keys() {
            tokio::spawn(forget_if_away(handle.clone(), follower));
        }
        let (grpc, http) =
            (grpc_listener.local_addr()?, http_listener.as_ref().map(TcpListener::local_addr).transpose()?);
        let mut tasks = JoinSet::new();
        let failover = Failover::new(handle.clone(), credentials.clone(), config.failover.clone());
        let (door, agents_in, others_in) = Door::new(metrics, handle.stopping());
        {
            let (door, certificate) = (door.clone(), Arc::clone(&certificate));
            tasks.spawn(async move {
                door.accept_tls(grpc_listener, certificate).await;
                Ok(())
            });
        }
        if let Some(listener) = unix_listener {
            tasks.spawn(async move {
                door.accept_unix(listener).await;
                Ok(())
            });
        }
        let agents = AgentLink::new(failover.clone(), config.advertise.clone());
        for (accepted, keepalive) in [(agents_in, None), (others_in, Some(keepalive))] {
            let (agents, paging) = (agents.clone(), paging.clone());
            tasks.spawn(serve_grpc(accepted, keepalive, handle.clone(), failover.clone(), agents, paging));
        }
        if let Some(listener) = http_listener {
            let handle = handle.clone();
            let inbound = paging.inbound.clone();
            tasks.spawn(async move { Ok(crate::http::serve(listener, handle, inbound).await?) });
        }
        paging.spawn(&handle, &config, &mut tasks);
        tasks.spawn(async move {
            failover.run().await;
            Ok(())
        });
        let refusals = refused::run(handle.clone());
        tasks.spawn(async move {
            refusals.await;
            Ok(())
        });
        let asking = crate::second_opinion::run(handle.clone());
        tasks.spawn(async move {
            asking.await;
            Ok(())
        });
        Ok(Self { handle, runtime, tasks, certificate, paging, grpc, http })
    }

    /// The way to the loop.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Serves new connections with a renewed certificate of the same identity.
    pub fn renew_certificate(&self, credentials: Credentials) -> Result<(), TlsError> {
        self.certificate.renew(credentials)
    }

    /// Reads the secrets of receivers again; calls from now on are made with them.
    pub fn reload_secrets(&self) {
        self.paging.reload();
    }

    /// Where gRPC is served.
    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Where HTTP is served.
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Resolves when something that must run has ended by itself.
    pub async fn failed(&mut self) -> anyhow::Error {
        tokio::select! {
            error = self.runtime.failed() => anyhow::Error::new(error).context("the loop ended"),
            Some(ended) = self.tasks.join_next() => match ended {
                Ok(Ok(())) => anyhow::anyhow!("a task ended before its time"),
                Ok(Err(error)) => error,
                Err(error) => anyhow::Error::new(error).context("a task panicked"),
            },
        }
    }

    /// Ends streams, servers and pagers, then the loop, which takes a snapshot.
    pub async fn stop(mut self) -> Result<(), RuntimeError> {
        self.handle.shutdown();
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            tracing::warn!("some connections did not end in time; going on without them");
            self.tasks.abort_all();
        }
        self.runtime.finish().await
    }
}

/// Serves what comes by `accepted`. Only where there is a `keepalive` a peer must also answer HTTP/2's pings: its timers
/// wake every connection, too much for agents, and of an agent that hangs the silence tells.
async fn serve_grpc(
    accepted: Accepted,
    keepalive: Option<Keepalive>,
    handle: Handle,
    failover: Failover,
    agents: AgentLink,
    paging: Paging,
) -> anyhow::Result<()> {
    // The descriptors hold the agent's own service too, which is none of those served here.
    let reflection = |version: &str| {
        let configured = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(format!("grpc.reflection.{version}.ServerReflection"))
            .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
            .with_service_name(agent_link_service_server::SERVICE_NAME);
        SERVED_ALWAYS.iter().fold(configured, |configured, service| configured.with_service_name(*service))
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let reporting = tokio::spawn(report_health(reporter, handle.clone()));
    let bounded = REQUEST_BYTES_MAX;
    let served = Server::builder()
        .layer(Watch(handle.metrics().refused.clone()))
        .http2_keepalive_interval(keepalive.map(|keepalive| keepalive.silence))
        .http2_keepalive_timeout(keepalive.map(|keepalive| keepalive.patience))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESET_STREAMS_PENDING_MAX))
        .http2_max_local_error_reset_streams(Some(RESET_STREAMS_LOCAL_MAX))
        .add_service(health)
        .add_service(reflection("v1").build_v1()?)
        .add_service(reflection("v1alpha").build_v1alpha()?)
        .add_service(AgentLinkServiceServer::new(agents).max_decoding_message_size(LINK_MESSAGE_BYTES_MAX))
        .add_service(FleetServiceServer::new(FleetApi::new(handle.clone())).max_decoding_message_size(bounded))
        .add_service(FindingServiceServer::new(FindingApi::new(handle.clone())).max_decoding_message_size(bounded))
        .add_service(IncidentServiceServer::new(IncidentApi::new(handle.clone())).max_decoding_message_size(bounded))
        .add_service(SilenceServiceServer::new(SilenceApi::new(handle.clone())).max_decoding_message_size(bounded))
        .add_service(
            PagingServiceServer::new(PagingApi::new(handle.clone(), paging.lanes, paging.fleet))
                .max_decoding_message_size(bounded),
        )
        .add_service(FailoverServiceServer::new(FailoverApi::new(failover.clone())).max_decoding_message_size(bounded))
        .add_service(ReplicationServiceServer::new(Replication::new(failover)).max_decoding_message_size(bounded))
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), handle.stopping().cancelled_owned())
        .await;
    reporting.abort();
    Ok(served?)
}

/// The server as a whole serves; the agents' link serves on a primary only.
async fn report_health(reporter: HealthReporter, handle: Handle) {
    let mut standing = handle.standing();
    loop {
        let primary = standing.borrow_and_update().role == CoordinatorRole::Primary;
        let link = if primary { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status(agent_link_service_server::SERVICE_NAME, link).await;
        for service in SERVED_ALWAYS {
            reporter.set_service_status(*service, ServingStatus::Serving).await;
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}
