//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_common::units::parse_duration;
use std::path::PathBuf;
use std::time::Duration;

/// Ask and steer a Muster coordinator.
#[derive(Debug, Parser)]
#[command(name = "musterctl", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Arguments {
    /// How to reach the coordinator.
    #[command(flatten)]
    pub target: Target,
    /// Output for people or for programs
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach the coordinator.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Target {
    /// Coordinator to ask, such as https://coord-a:7420; without it the local socket is used if it exists
    #[arg(long, global = true, env = "MUSTER_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// Unix socket of a coordinator on this host
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "endpoint")]
    pub socket: Option<PathBuf>,
    /// The fleet's CA
    #[arg(long, global = true, env = "MUSTER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Your certificate
    #[arg(long, global = true, env = "MUSTER_CERT", value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Your private key
    #[arg(long, global = true, env = "MUSTER_KEY", value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// File with endpoint, socket, ca, cert and key [default: ~/.config/muster/ctl.toml, then /etc/muster/ctl.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Output for people or for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; not to be parsed.
    Table,
    /// The API's fields in `snake_case`.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The one-screen answer: who reigns, how many agents, what is open
    Status,
    /// Agents of the fleet
    #[command(subcommand)]
    Agents(Agents),
    /// What agents report as wrong
    #[command(subcommand)]
    Findings(Findings),
    /// The journal
    #[command(subcommand)]
    Events(Events),
    /// Everything that followed from one fact
    Trace {
        /// Trace id, as `events list` shows it
        id: String,
    },
    /// Incidents: what was concluded from findings
    #[command(subcommand)]
    Incidents(Incidents),
    /// Freezes: "do not dispatch new work", which `muster-agent preflight` obeys
    #[command(subcommand)]
    Freeze(Freeze),
    /// Which coordinator reigns, and handing over
    #[command(subcommand)]
    Failover(Failover),
}

/// `freeze …`
#[derive(Debug, Subcommand)]
pub(crate) enum Freeze {
    /// Set one: on the whole fleet, or on those named and labelled
    On {
        /// Why; told to everybody who is stopped by it
        #[arg(long)]
        reason: String,
        /// Only on this agent (repeat for more)
        #[arg(long = "agent", value_name = "NAME")]
        agents: Vec<String>,
        /// Only on agents with this label (repeat for more: all must fit)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
        /// How long, such as 2h [default: until it is lifted]
        #[arg(long, value_name = "LENGTH", value_parser = parse_duration)]
        ttl: Option<Duration>,
    },
    /// Lift one
    Off {
        /// FRZ-N, as `freeze list` shows it
        id: String,
    },
    /// List those that hold
    List,
}

/// `agents …`
#[derive(Debug, Subcommand)]
pub(crate) enum Agents {
    /// List agents, the troubled ones first
    List {
        /// Only agents in this state
        #[arg(long, value_enum)]
        state: Option<State>,
        /// Only agents with this label (repeat for more)
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(String, String)>,
    },
    /// Show one agent
    Show {
        /// Its name
        name: String,
    },
    /// Ask an agent for a sign of life over its stream
    Ping {
        /// Its name
        name: String,
    },
}

/// States of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    /// Heard within the threshold.
    Live,
    /// Silent beyond it.
    Stale,
    /// Said goodbye.
    Stopped,
    /// Not heard since the coordinator began to listen.
    NotYetReheard,
}

/// `findings …`
#[derive(Debug, Subcommand)]
pub(crate) enum Findings {
    /// List open findings, worst first
    List {
        /// Only of this agent
        #[arg(long)]
        agent: Option<String>,
        /// Only of this service
        #[arg(long)]
        service: Option<String>,
        /// Only with this reason code
        #[arg(long)]
        reason: Option<String>,
        /// Also recent occurrences (OOM kills, restarts), not only open conditions
        #[arg(long)]
        occurrences: bool,
    },
}

/// `events …`
#[derive(Debug, Subcommand)]
pub(crate) enum Events {
    /// List the journal, newest first
    List {
        /// How many
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        /// Only about this agent
        #[arg(long)]
        agent: Option<String>,
        /// Only about this incident
        #[arg(long)]
        incident: Option<String>,
    },
}

/// `incidents …`
#[derive(Debug, Subcommand)]
pub(crate) enum Incidents {
    /// List open incidents, newest first
    List {
        /// Also the resolved ones
        #[arg(long)]
        all: bool,
        /// Only about this agent
        #[arg(long)]
        agent: Option<String>,
        /// Only about this service
        #[arg(long)]
        service: Option<String>,
    },
    /// Show one incident with its timeline
    Show {
        /// INC-YYYYMMDD-NNNN
        id: String,
    },
    /// Take ownership
    Ack {
        /// INC-YYYYMMDD-NNNN
        id: String,
        /// What you are about to do
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Close by hand
    Resolve {
        /// INC-YYYYMMDD-NNNN
        id: String,
        /// Why it is over
        #[arg(long)]
        summary: String,
    },
    /// Write something into the timeline
    Note {
        /// INC-YYYYMMDD-NNNN
        id: String,
        /// What
        text: String,
    },
}

/// `failover …`
#[derive(Debug, Subcommand)]
pub(crate) enum Failover {
    /// Role, epoch, journal and standbys of the coordinator that is asked
    Status,
    /// Make the standby that is asked the primary
    Promote {
        /// The primary it replaces; refused if it followed another one
        #[arg(long, value_name = "NAME")]
        old_primary: String,
        /// Promote although a check failed
        #[arg(long)]
        force: bool,
        /// Why, for the journal
        #[arg(long, default_value = "")]
        reason: String,
        /// Do not ask on the terminal
        #[arg(long, short = 'y')]
        yes: bool,
        /// How long to wait for the old primary to attach as a standby; 0s does not look for it
        #[arg(long, default_value = "5s", value_parser = parse_wait)]
        wait: Duration,
    },
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let wait = parse_duration(text)?;
    if wait <= Duration::from_secs(600) { Ok(wait) } else { Err("expected at most \"10m\"".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
