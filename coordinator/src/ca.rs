//! The built-in certificate authority: `ca init` makes one for a fleet, `ca issue` signs for agents, operators,
//! viewers and coordinators.
//!
//! The CA is a folder with two files. It need not be on a coordinator, and is safer elsewhere: whoever has its key can
//! be anyone in the fleet. Must never overwrite a CA, nor another holder's certificate.

use clap::Subcommand;
use muster_common::identity::{Identity, IdentityError, Role};
use muster_common::ids::{AgentName, FleetName, NameError};
use muster_common::tls;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a CA lives: long enough that nobody forgets its end between two jobs, short enough to be met once.
const CA_DAYS: u32 = 3650;
/// How long a certificate lives when nothing is said.
const LEAF_DAYS_DEFAULT: u32 = 365;
/// Certificates begin this much in the past, because hosts' clocks differ.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Alternative names of one certificate.
const SANS_MAX: usize = 32;
const DAY: Duration = Duration::from_secs(24 * 3600);

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const LEAF_CERTIFICATE: &str = "cert.pem";
const LEAF_KEY: &str = "key.pem";

/// `muster-coordinator ca …`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make the certificate authority of a fleet: ca.pem and ca-key.pem in a folder
    Init {
        /// Folder for the CA; made when missing
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Name of the fleet
        #[arg(long, value_name = "NAME")]
        fleet: String,
    },
    /// Issue a certificate: ca.pem, cert.pem and key.pem in a folder
    Issue {
        /// Folder of the CA
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// What its holder may do: agent, operator, viewer or coordinator
        #[arg(long, value_name = "ROLE")]
        role: String,
        /// Name of the holder; of an agent, its name in the fleet
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Host name or IP address under which others connect to it (coordinators; may be repeated)
        #[arg(long = "san", value_name = "HOST_OR_IP")]
        sans: Vec<String>,
        /// Folder for the certificate; made when missing
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Days it is valid
        #[arg(long, value_name = "DAYS", default_value_t = LEAF_DAYS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=i64::from(CA_DAYS)))]
        days: u32,
    },
}

/// Why the CA did not do it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is a CA already.
    #[error("{} exists already; a CA is never overwritten, choose another --dir", .0.display())]
    CaExists(PathBuf),
    /// There is no CA.
    #[error("{} is not a CA folder; make one with: muster-coordinator ca init --dir DIR --fleet NAME", .0.display())]
    NoCa(PathBuf),
    /// A file or folder.
    #[error("cannot {what} {}", path.display())]
    File {
        /// Read, write, make.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A name that is none.
    #[error("--{option} {value:?} is not a name")]
    Name {
        /// Which option.
        option: &'static str,
        /// What was given.
        value: String,
        /// Why.
        #[source]
        source: NameError,
    },
    /// A role that is none.
    #[error("--role is wrong")]
    Role(#[source] IdentityError),
    /// A name under which nobody can connect.
    #[error("--san {0:?} is neither a host name nor an IP address")]
    San(String),
    /// More than anybody needs.
    #[error("at most {SANS_MAX} --san are allowed")]
    TooManySans,
    /// The folder belongs to somebody else.
    #[error("{} holds the certificate of {holder}; choose another --out", path.display())]
    OtherHolder {
        /// The certificate.
        path: PathBuf,
        /// Whose.
        holder: String,
    },
    /// The library that makes certificates refused.
    #[error("cannot make the certificate")]
    Certificate(#[from] rcgen::Error),
}

/// What to put into a certificate.
#[derive(Debug, Clone)]
pub struct IssueRequest<'a> {
    /// What its holder may do.
    pub role: Role,
    /// Its holder's name.
    pub name: &'a str,
    /// Where others connect to it.
    pub sans: &'a [String],
    /// Days it is valid.
    pub days: u32,
}

/// Runs a subcommand and says what was written.
pub fn run(command: &CaCommand, out: &mut dyn Write) -> Result<(), CaError> {
    let lines = match command {
        CaCommand::Init { dir, fleet } => {
            let fingerprint = init(dir, fleet)?;
            vec![
                format!("wrote {} and {}", dir.join(CA_CERTIFICATE).display(), dir.join(CA_KEY).display()),
                format!("CA of fleet {fleet}, valid {CA_DAYS} days, fingerprint {fingerprint}"),
                format!("keep {} secret: whoever has it can be anyone in the fleet", dir.join(CA_KEY).display()),
            ]
        }
        CaCommand::Issue { dir, role, name, sans, out, days } => {
            let role: Role = role.parse().map_err(CaError::Role)?;
            let issued = issue(dir, &IssueRequest { role, name, sans, days: *days }, out)?;
            let done = if issued.replaced { "replaced" } else { "wrote" };
            vec![
                format!("{done} ca.pem, cert.pem and key.pem in {}", out.display()),
                format!("{}, valid {days} days, CA fingerprint {}", issued.identity, issued.ca_fingerprint),
            ]
        }
    };
    for line in lines {
        writeln!(out, "{line}").map_err(|source| CaError::File {
            what: "write to",
            path: "the terminal".into(),
            source,
        })?;
    }
    Ok(())
}

/// Makes a CA in `dir` and returns its fingerprint.
pub fn init(dir: &Path, fleet: &str) -> Result<String, CaError> {
    let fleet = FleetName::new(fleet).map_err(|source| name_error("fleet", fleet, source))?;
    make_folder(dir)?;
    for file in [CA_CERTIFICATE, CA_KEY] {
        let path = dir.join(file);
        if path.symlink_metadata().is_ok() {
            return Err(CaError::CaExists(path));
        }
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("Muster CA of {fleet}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(tls::ca_uri(&fleet).try_into()?)];
    params.serial_number = Some(random_serial());
    set_validity(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key)?;
    write_file(&dir.join(CA_KEY), key.serialize_pem().as_bytes(), 0o600)?;
    write_file(&dir.join(CA_CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
    Ok(tls::fingerprint(certificate.der()))
}

/// What was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// To whom.
    pub identity: Identity,
    /// By which CA.
    pub ca_fingerprint: String,
    /// The folder had a certificate of the same holder.
    pub replaced: bool,
}

/// Issues a certificate by the CA in `dir` into the folder `out`.
pub fn issue(dir: &Path, request: &IssueRequest<'_>, out: &Path) -> Result<Issued, CaError> {
    let name = AgentName::new(request.name).map_err(|source| name_error("name", request.name, source))?;
    let ca_pem = read_ca_file(dir, CA_CERTIFICATE)?;
    let ca_key = KeyPair::from_pem(&read_ca_file(dir, CA_KEY)?)?;
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|_| CaError::NoCa(dir.to_owned()))?;
    let fleet = tls::ca_fleet(&ca).ok_or_else(|| CaError::NoCa(dir.to_owned()))?;
    let issuer = Issuer::from_ca_cert_der(&ca, ca_key)?;

    let identity = Identity { fleet, role: request.role, name: name.into() };
    let params = leaf_params(&identity, request)?;
    make_folder(out)?;
    let replaced = check_holder(out, &identity)?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    write_file(&out.join(CA_CERTIFICATE), ca_pem.as_bytes(), 0o644)?;
    write_file(&out.join(LEAF_KEY), key.serialize_pem().as_bytes(), 0o600)?;
    write_file(&out.join(LEAF_CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
    Ok(Issued { identity, ca_fingerprint: tls::fingerprint(&ca), replaced })
}

fn leaf_params(identity: &Identity, request: &IssueRequest<'_>) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&identity.name);
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    params.subject_alt_names.extend(host_names(identity, request.sans)?);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if request.role == Role::Coordinator {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    set_validity(&mut params, request.days);
    Ok(params)
}

/// Where others connect to: what was asked for, and a coordinator's own name when it can be a host name.
fn host_names(identity: &Identity, sans: &[String]) -> Result<Vec<SanType>, CaError> {
    if sans.len() > SANS_MAX {
        return Err(CaError::TooManySans);
    }
    let mut names = Vec::new();
    for san in sans {
        names.push(host_name(san).ok_or_else(|| CaError::San(san.clone()))?);
    }
    if identity.role == Role::Coordinator
        && let Some(own) = host_name(&identity.name)
        && !names.contains(&own)
    {
        names.push(own);
    }
    Ok(names)
}

fn host_name(text: &str) -> Option<SanType> {
    match ServerName::try_from(text).ok()? {
        ServerName::IpAddress(ip) => Some(SanType::IpAddress(IpAddr::from(ip))),
        ServerName::DnsName(_) => Some(SanType::DnsName(text.try_into().ok()?)),
        _ => None,
    }
}

fn common_name(name: &str) -> rcgen::DistinguishedName {
    let mut distinguished = rcgen::DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn random_serial() -> SerialNumber {
    SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes())
}

fn set_validity(params: &mut CertificateParams, days: u32) {
    let unix_epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = Duration::from_secs(u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default());
    params.not_before = unix_epoch + now.saturating_sub(BACKDATE);
    params.not_after = unix_epoch + now + DAY * days;
}

fn name_error(option: &'static str, value: &str, source: NameError) -> CaError {
    CaError::Name { option, value: muster_common::limits::clip(value, 100), source }
}

fn read_ca_file(dir: &Path, file: &str) -> Result<String, CaError> {
    let path = dir.join(file);
    std::fs::read_to_string(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => CaError::NoCa(dir.to_owned()),
        _ => CaError::File { what: "read", path, source },
    })
}

/// True when the folder has a certificate of the same holder; an error when it is another's.
fn check_holder(out: &Path, identity: &Identity) -> Result<bool, CaError> {
    let path = out.join(LEAF_CERTIFICATE);
    let pem = match std::fs::read(&path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(CaError::File { what: "read", path, source }),
    };
    let holder = CertificateDer::from_pem_slice(&pem).ok().and_then(|leaf| tls::peer_identity(&[leaf]).ok());
    match holder {
        Some(holder) if &holder == identity => Ok(true),
        Some(holder) => Err(CaError::OtherHolder { path, holder: holder.to_string() }),
        None => Err(CaError::OtherHolder { path, holder: "somebody else".to_owned() }),
    }
}

fn make_folder(path: &Path) -> Result<(), CaError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path).map_err(|source| CaError::File {
        what: "make the folder",
        path: path.to_owned(),
        source,
    })
}

/// Writes beside and renames, so that a reader sees the old file or the new one, and a key is never open to others.
fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let beside = path.with_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| {
        if let Err(error) = std::fs::remove_file(&beside) {
            tracing::debug!(path = %beside.display(), %error, "cannot remove what was half written");
        }
        CaError::File { what: "write", path: path.to_owned(), source }
    })
}
