//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use muster_common::severity::Severity;
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
    /// [env: MUSTER_ENDPOINT]
    // Not by clap: a variable that is set for good must not contradict --socket.
    #[arg(long, global = true, value_name = "URL")]
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
    /// Who you are, where many share the account on the socket: told beside its name [env: MUSTER_AS] [default: who called
    /// sudo]
    // Not by clap: a variable that is set for good must not contradict a certificate.
    #[arg(long = "as", global = true, value_name = "NAME", conflicts_with = "endpoint")]
    pub said: Option<String>,
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
    /// For `incidents export` alone.
    Markdown,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The one-screen answer: who reigns, how many agents, what is open
    Status {
        /// Go on, redrawn at every change; q ends it. Line by line where the output is no terminal
        #[arg(long)]
        live: bool,
    },
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
        /// Number of a journal entry, as `events list`, `why` and timelines show it: the fact itself or what followed
        id: String,
    },
    /// Incidents: what was concluded from findings
    #[command(subcommand)]
    Incidents(Incidents),
    /// Silences and maintenance windows: what pages nobody for a while
    #[command(subcommand)]
    Silence(Silence),
    /// Receivers of pages, and what did not get through
    #[command(subcommand)]
    Receivers(Receivers),
    /// Why was this page sent, this incident opened?
    Why {
        /// INC-YYYYMMDD-NNNN, the id of a page, or the id of a finding
        #[arg(value_parser = parse_id)]
        id: String,
    },
    /// Why was nobody paged about a host?
    WhyNot {
        /// Name of the agent
        host: String,
        /// When: 2026-11-21T03:04:05Z, "2026-11-21 03:04" or 03:04 (UTC), or 15m ago [default: now]
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
        /// Only what is about this service
        #[arg(long)]
        service: Option<String>,
    },
    /// What a reason code means and what to do; needs no coordinator
    Runbook {
        /// Reason code, such as oom_kill; none: all that there are
        reason: Option<String>,
    },
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
        #[arg(long, value_name = "LENGTH", value_parser = parse_duration, visible_alias = "for")]
        ttl: Option<Duration>,
    },
    /// Lift one
    Off {
        /// FRZ-N, as `freeze list` shows it
        #[arg(value_parser = parse_id)]
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
    /// Ask an agent what it holds to be wrong right now
    Diagnose {
        /// Its name
        name: String,
        /// Only this service
        #[arg(long)]
        service: Option<String>,
    },
    /// Forget an agent that is gone for good; what is open about it ends
    Archive {
        /// Its name
        name: String,
        /// Why; written into the incidents that end
        #[arg(long)]
        reason: String,
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
    /// Print findings as they come, one per line, until interrupted
    Watch {
        /// Only of this agent
        #[arg(long)]
        agent: Option<String>,
        /// Only of this service
        #[arg(long)]
        service: Option<String>,
        /// Only with this reason code
        #[arg(long)]
        reason: Option<String>,
        /// Only this bad or worse
        #[arg(long, value_parser = parse_severity, value_name = "SEV")]
        min_severity: Option<Severity>,
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
        #[arg(long, value_parser = parse_id)]
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
        #[arg(value_parser = parse_id)]
        id: String,
    },
    /// Take ownership
    Ack {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// What you are about to do
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Close by hand
    Resolve {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// Why it is over
        #[arg(long)]
        summary: String,
    },
    /// Write something into the timeline
    Note {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// What
        text: String,
    },
    /// Say how bad it is; rules may make it worse afterwards, not better
    Severity {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// sev0 (complete outage) to sev4
        #[arg(value_parser = parse_severity)]
        severity: Severity,
        /// Why
        #[arg(long)]
        note: String,
    },
    /// Name who leads the response
    Commander {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// Who
        #[arg(required_unless_present = "none", conflicts_with = "none")]
        name: Option<String>,
        /// Nobody any more
        #[arg(long)]
        none: bool,
    },
    /// Print the post-incident note, as Markdown or with --format json
    Export {
        /// INC-YYYYMMDD-NNNN
        #[arg(value_parser = parse_id)]
        id: String,
        /// The part of the journal it rests on, for muster-coordinator replay
        #[arg(long, requires = "output")]
        bundle: bool,
        /// Write here instead of printing
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// `silence …`
#[derive(Debug, Subcommand)]
pub(crate) enum Silence {
    /// Add one: each kind of matcher that is given must fit; * at the end of a name stands for anything
    Add(NewSilence),
    /// List those that hold or are to come
    List {
        /// Also those that are over
        #[arg(long)]
        all: bool,
    },
    /// End one now; what is open pages then
    Expire {
        /// SIL-N, as `silence list` shows it
        #[arg(value_parser = parse_id)]
        id: String,
    },
}

/// `silence add`
#[derive(Debug, Args)]
#[group(id = "matchers", multiple = true)]
pub(crate) struct NewSilence {
    /// Only about this agent (repeat for more: any fits)
    #[arg(long = "agent", value_name = "NAME")]
    pub agents: Vec<String>,
    /// Only about agents with this label (repeat for more: all must fit)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Only about this service (repeat for more: any fits)
    #[arg(long = "service", value_name = "NAME")]
    pub services: Vec<String>,
    /// Only with this reason code, such as `port_closed` (repeat for more: any fits)
    #[arg(long = "code", value_name = "CODE")]
    pub codes: Vec<String>,
    /// Only this cause key, as `incidents show` has it (repeat for more: any fits)
    #[arg(long = "cause", value_name = "KEY")]
    pub causes: Vec<String>,
    /// Why; told to everybody who wonders
    #[arg(long)]
    pub reason: String,
    /// How long, such as 2h
    #[arg(long, value_name = "LENGTH", value_parser = parse_duration, visible_alias = "for")]
    pub ttl: Duration,
    /// When it begins: 2026-11-21T03:04:05Z, "2026-11-21 03:04" or 03:04 (UTC), or "in 30m" [default: now]
    #[arg(long, value_name = "TIME")]
    pub start: Option<String>,
    /// Planned work: agents that stop within it are expected to
    #[arg(long)]
    pub maintenance: bool,
}

/// `receivers …`
#[derive(Debug, Subcommand)]
pub(crate) enum Receivers {
    /// List receivers and how they do
    List,
    /// Send a message that says it is a test, and wait for the outcome
    Test {
        /// Its name
        name: String,
    },
    /// List pages that were given up and can be sent again, newest first
    DeadLetters {
        /// Only of this receiver
        #[arg(long)]
        receiver: Option<String>,
        /// Also those that nobody needs any more, such as of an incident that is resolved
        #[arg(long)]
        all: bool,
    },
    /// Send a page that was given up again
    Resend {
        /// Its id, as `receivers dead-letters` shows it
        page: String,
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

/// Ids of incidents, silences and freezes are in capitals, whatever a tired person types.
fn parse_id(text: &str) -> Result<String, String> {
    let text = text.trim();
    let known = ["inc-", "sil-", "frz-"];
    let is_ours =
        known.iter().any(|prefix| text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix)));
    match text {
        "" => Err("expected an id such as INC-20261121-0001".to_owned()),
        text if is_ours => Ok(text.to_ascii_uppercase()),
        text => Ok(text.to_owned()),
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn parse_severity(text: &str) -> Result<Severity, String> {
    text.parse::<Severity>().map_err(|error| error.to_string())
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
    fn ids_are_known_in_small_letters() {
        assert_eq!(parse_id(" inc-20261121-0001 ").as_deref(), Ok("INC-20261121-0001"));
        assert_eq!(parse_id("frz-3").as_deref(), Ok("FRZ-3"));
        for other in ["4711", "inc", "web-1/spl/port/x/port_closed", "ï-1"] {
            assert_eq!(parse_id(other).as_deref(), Ok(other));
        }
        assert!(parse_id(" ").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
