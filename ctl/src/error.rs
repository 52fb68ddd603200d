//! What can go wrong, and what to try then.

use muster_common::chain::Chain;
use muster_common::config::ConfigErrors;
use muster_common::tls::TlsError;
use std::error::Error;
use std::path::PathBuf;
use tonic::{Code, Status};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CtlError {
    /// The config file has mistakes.
    #[error("{0}")]
    Config(ConfigErrors),
    /// The config file cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    ReadConfig {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something is missing or contradicts itself.
    #[error("{0}")]
    Usage(String),
    /// Own certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection.
    #[error("cannot connect to {target}")]
    Connect {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke before the first call.
    #[error("cannot speak HTTP/2 with {target}")]
    Transport {
        /// Where.
        target: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The coordinator said no, or the connection broke during the call.
    #[error("{}", .0.message())]
    Status(Box<Status>),
    /// A list that does not end.
    #[error("the coordinator's list does not end; narrow it with a filter")]
    EndlessList,
    /// A stream that only its reader should end.
    #[error("the coordinator ended the stream")]
    Ended,
    /// Nothing was changed.
    #[error("{0}")]
    NotPromoted(String),
    /// A file cannot be written.
    #[error("cannot write {path}", path = .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Cannot print.
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
}

impl From<Status> for CtlError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl CtlError {
    /// The process's exit status.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::ReadConfig { .. } | Self::Usage(_) => 2,
            Self::NotPromoted(_) => crate::commands::NOT_PROMOTED,
            _ => 1,
        }
    }

    /// The error with its causes and what to try; safe to print on a terminal.
    pub(crate) fn report(&self) -> String {
        let said = match self {
            // Its snippet has lines of its own.
            Self::Config(errors) => return errors.to_string(),
            Self::Status(status) => format!("{} ({})", status_text(status), code_name(status.code())),
            other => Chain(other).to_string(),
        };
        // Line by line: a refused promotion lists its checks.
        let said = said.lines().map(crate::render::clean).collect::<Vec<_>>().join("\n");
        match self.advice() {
            Some(advice) => format!("{said}\n  try: {advice}"),
            None => said,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Connect { source, .. } => Some(connect_advice(source)),
            Self::Transport { .. } => Some("is this the coordinator's gRPC port (7420), not its HTTP port (7421)?"),
            Self::Status(status) => status_advice(status),
            Self::Ended => Some("it may be stopping: start again; musterctl failover status shows who reigns"),
            Self::Write { .. } => Some("name a file in a folder that exists and is yours with -o"),
            _ => None,
        }
    }
}

/// The message and its causes, each once. (A [`Status`] displays its code and metadata too, and the transport's layers
/// repeat each other.)
fn status_text(status: &Status) -> String {
    let mut parts = vec![status.message().to_owned()];
    let mut next = status.source();
    // Bounded, as every chain.
    for _ in 0..16 {
        let Some(cause) = next else { break };
        let text = cause.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = cause.source();
    }
    parts.join(": ")
}

fn connect_advice(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return tls_advice(tls);
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => {
            "is the coordinator running? systemctl status muster-coordinator on that host; its gRPC port is 7420"
        }
        ErrorKind::NotFound => "is the coordinator running on this host? otherwise give --endpoint https://HOST:7420",
        ErrorKind::PermissionDenied => {
            "the local socket is for root and the coordinator's own user: use sudo, or --endpoint with a certificate"
        }
        ErrorKind::InvalidData => "take the endpoint, the CA and your certificate of one fleet",
        ErrorKind::TimedOut => "is a firewall between here and there? another coordinator may answer",
        _ => "check the host name and the network",
    }
}

fn tls_advice(error: &rustls::Error) -> &'static str {
    use rustls::{CertificateError, Error};
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "--ca is not the CA that signed the coordinator's certificate; use the fleet's ca.pem"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "use a host name that is in the coordinator's certificate, or issue it again with --san HOST",
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the coordinator's certificate has expired (or this host's clock is wrong); issue a new one"
        }
        Error::AlertReceived(_) => "the coordinator refuses your certificate; was it issued by this fleet's CA?",
        _ => "check --ca, --cert and --key, and that this is the coordinator's gRPC port (7420)",
    }
}

fn status_advice(status: &Status) -> Option<&'static str> {
    let message = status.message();
    match status.code() {
        Code::FailedPrecondition | Code::Unavailable if message.contains("not the primary") => {
            Some("musterctl failover status shows the roles; give the primary's --endpoint")
        }
        // Under TLS 1.3 a server refuses a certificate only after the client believes to be connected.
        Code::Unavailable | Code::Unknown if status_text(status).contains("fatal alert") => {
            Some("the coordinator refuses your certificate: was it issued by this fleet's CA, and is it still valid?")
        }
        Code::Unavailable | Code::Unknown if status.source().is_some() => {
            Some("the connection broke; is the coordinator still running? see its log")
        }
        Code::DeadlineExceeded => Some("the coordinator is overloaded or hangs; see its /healthz"),
        Code::Unimplemented => Some("the coordinator is older than this musterctl"),
        _ => None,
    }
}

/// The canonical name of a code.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_try() {
        let error = CtlError::from(Status::unimplemented("no\u{1b}[2J\nsuch call"));
        let report = "no\\u{1b}[2J\nsuch call (UNIMPLEMENTED)\n  try: the coordinator is older than this musterctl";
        assert_eq!(error.report(), report);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = CtlError::Connect { target: "https://a:7420".to_owned(), source: refused };
        assert!(
            error
                .report()
                .starts_with("cannot connect to https://a:7420: connection refused\n  try: is the coordinator")
        );
        assert_eq!(error.exit_status(), 1);
    }
}
