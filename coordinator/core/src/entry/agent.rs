//! What is journaled of an agent's connections: how they begin and end, and why one counts as silent.

use muster_common::ids::{BootId, SpoolId};
use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What an agent says of itself when it connects. Evidence, except what the certificate and the socket prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// Host name.
    pub host_name: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Operating system.
    pub os_version: String,
    /// Kernel.
    pub kernel_version: String,
    /// This boot.
    pub boot_id: Option<BootId>,
    /// Labels from its config.
    pub labels: BTreeMap<String, String>,
    /// Address the coordinator sees.
    pub peer_address: String,
    /// The spool it sends from.
    pub spool: SpoolId,
    /// TCP ports it listens on beyond loopback, as it says: what its neighbours may be asked about.
    #[serde(default)]
    pub listening_ports: Vec<u16>,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disconnect {
    /// The agent said goodbye because it is stopped.
    Goodbye,
    /// The agent said goodbye because its host goes down.
    HostShutdown,
    /// The connection was reset or closed without a word.
    Reset,
    /// The transport's keepalive got no answer.
    Timeout,
    /// The agent broke the protocol; the stream was closed with a code.
    Refused,
    /// Another stream of the same agent took its place.
    Replaced,
    /// The coordinator stopped.
    Draining,
}

/// Why an agent counts as silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Silence {
    /// It said goodbye.
    Goodbye,
    /// It said that its host goes down.
    HostShutdown,
    /// Its connection was reset and it did not come back.
    Reset,
    /// Nothing was heard on an open connection.
    Nothing,
    /// It did not come back within the re-hear window after this coordinator began to listen.
    NotReheard,
}

impl Silence {
    /// When an agent that is silent so was heard: `last heard TIME`. Of the time before a coordinator began to listen only
    /// the journal is left, which has no heartbeats.
    pub fn last_heard(self, at: Timestamp) -> String {
        match self {
            Self::NotReheard => format!("heard until {at} at least"),
            Self::Goodbye | Self::HostShutdown | Self::Reset | Self::Nothing => format!("last heard {at}"),
        }
    }
}
