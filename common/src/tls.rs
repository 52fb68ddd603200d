//! TLS identity: certificates in, rustls configurations out.
//!
//! Both ends prove who they are (mutual TLS, 1.3 only), and both take the other's identity from its certificate and
//! from nowhere else (law 4). There is no resumption: a resumed session would skip the check of the certificate.
//!
//! Must never rely on the process-wide crypto provider: two crates that each install one make a panic at a distance.

use crate::identity::{Identity, IdentityError, Role};
use crate::ids::FleetName;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, RootCertStore, ServerConfig,
    SignatureScheme,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

#[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
compile_error!("choose a crypto provider: feature `ring` or `aws-lc-rs`");

/// What we speak above TLS: gRPC, so HTTP/2 and nothing else.
const ALPN_H2: &[u8] = b"h2";
/// Names the fleet in a CA certificate. Not `muster:`, so that it can never be taken for a member's identity.
const CA_SCHEME: &str = "muster-ca://";
/// Certificates in one file. A chain has two or three; more is a bundle of somebody else's roots.
const CERTIFICATES_PER_FILE_MAX: usize = 16;
/// Bytes of a PEM file, so that a path that points at a log or a device is refused and not read.
const PEM_BYTES_MAX: u64 = 256 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}; check that it exists and that this user may read it", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file has not what it should have.
    #[error("{} {problem}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// Everyone on the host may read the private key.
    #[error("the private key {} is readable by everyone (mode {mode:o}); run: chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// Which.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate names nobody of a fleet.
    #[error("{} is no Muster certificate; issue one with: muster-coordinator ca issue", path.display())]
    Identity {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The certificate and the key do not belong together, or rustls refuses them.
    #[error("the certificate {} and the key {} cannot be used together", certificate.display(), key.display())]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The files are in order, and nobody of the fleet would accept them.
    #[error("{0}")]
    NotAccepted(String),
    /// A configuration cannot be built from credentials that loaded well.
    #[error("cannot set up TLS: {0}")]
    Setup(String),
}

/// Who we are and whom we trust. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    ca: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    key: Arc<CertifiedKey>,
}

impl fmt::Debug for Credentials {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.inner.identity.to_string()).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the fleet's CA, our certificate (chain, leaf first) and our private key from PEM files.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let authorities = read_certificates(ca)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(|error| TlsError::Content {
                path: ca.to_owned(),
                problem: format!("has a certificate that cannot be a root ({error}); use the fleet's ca.pem"),
            })?;
        }
        let chain = read_certificates(certificate)?;
        let identity =
            peer_identity(&chain).map_err(|source| TlsError::Identity { path: certificate.to_owned(), source })?;
        let key_der = read_key(key)?;
        let pair = |source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
        let certified = CertifiedKey::from_der(chain, key_der, &provider()).map_err(pair)?;
        Ok(Self {
            inner: Arc::new(Inner { identity, ca: authorities, roots: Arc::new(roots), key: Arc::new(certified) }),
        })
    }

    /// Who our certificate says we are.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The fleet we belong to.
    pub fn fleet(&self) -> &FleetName {
        &self.inner.identity.fleet
    }

    /// Checks what the other end will check of us, so that a mistake is told here and not by a handshake that fails:
    /// our role, our fleet, and that our CA signed our certificate. Gives a word when that is well but for the time.
    pub fn check_own(&self, role: Role) -> Result<Option<String>, TlsError> {
        let identity = self.identity();
        let role_name = role.as_str();
        if identity.role != role {
            return Err(TlsError::NotAccepted(format!(
                "the certificate is of {identity}, which is not of role {role_name}; issue one with: \
                 muster-coordinator ca issue --role {role_name}"
            )));
        }
        if let Some(fleet) = self.inner.ca.iter().find_map(ca_fleet).filter(|fleet| *fleet != identity.fleet) {
            return Err(TlsError::NotAccepted(format!(
                "the certificate is of {identity}, the CA is of fleet {fleet}; take both from one fleet"
            )));
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(self.roots()), provider()).build();
        let verifier = verifier.map_err(|error| TlsError::Setup(error.to_string()))?;
        let Some((leaf, intermediates)) = self.chain().split_first() else { return Ok(None) };
        let outside_its_time = |error: &CertificateError| {
            use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
            matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. })
        };
        match verifier.verify_client_cert(leaf, intermediates, UnixTime::now()) {
            Ok(_) => Ok(None),
            Err(rustls::Error::InvalidCertificate(error)) if outside_its_time(&error) => Ok(Some(error.to_string())),
            Err(error) => Err(TlsError::NotAccepted(format!(
                "our own CA does not accept our certificate ({error}); use the certificate and the CA of one fleet"
            ))),
        }
    }

    /// The CAs we trust.
    pub fn roots(&self) -> &Arc<RootCertStore> {
        &self.inner.roots
    }

    /// Our certificate chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.inner.key.cert
    }

    /// SHA-256 of the first CA certificate, as printed by `ca init`.
    pub fn ca_fingerprint(&self) -> String {
        self.inner.ca.first().map(|ca| fingerprint(ca)).unwrap_or_default()
    }

    /// Signs `message` with our certificate's key. Only for domain-separated messages: see `epoch_proof`.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, TlsError> {
        let schemes = provider().signature_verification_algorithms.supported_schemes();
        let signer = self.inner.key.key.choose_scheme(&schemes);
        let signer = signer.ok_or_else(|| TlsError::Setup("the private key supports no known signature".into()))?;
        signer.sign(message).map_err(|error| TlsError::Setup(format!("cannot sign: {error}")))
    }
}

/// The crypto provider chosen at build time; `ring` wins when both are compiled in.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    #[cfg(feature = "ring")]
    let make = rustls::crypto::ring::default_provider;
    #[cfg(all(feature = "aws-lc-rs", not(feature = "ring")))]
    let make = rustls::crypto::aws_lc_rs::default_provider;
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(make())))
}

/// The identity in the first certificate of a chain.
///
/// Says nothing about whether the chain is to be trusted: ask only after the handshake has verified it.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<Identity, IdentityError> {
    let leaf = chain.first().ok_or(IdentityError::Count(0))?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|e| IdentityError::Certificate(e.to_string()))?;
    let mut names = leaf.valid_uri_names().filter(|uri| uri.starts_with("muster:"));
    match (names.next(), names.count()) {
        (Some(name), 0) => name.parse(),
        (None, _) => Err(IdentityError::Count(0)),
        (Some(_), more) => Err(IdentityError::Count(more.saturating_add(1))),
    }
}

/// For whoever connects to a coordinator: the server must hold a certificate of our CA for the host name in the
/// address, and that certificate must be a coordinator's of our fleet.
pub fn client_config(credentials: &Credentials) -> Result<Arc<ClientConfig>, TlsError> {
    let setup = |error: &dyn fmt::Display| TlsError::Setup(error.to_string());
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::clone(credentials.roots()), provider())
        .build()
        .map_err(|error| setup(&error))?;
    let verifier = CoordinatorOfFleet { chain, fleet: credentials.fleet().clone() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| setup(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&credentials.inner.key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a coordinator's port: every client must hold a certificate of our CA that names a member of our fleet.
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, TlsError> {
    let setup = |error: &dyn fmt::Display| TlsError::Setup(error.to_string());
    if credentials.identity().role != Role::Coordinator {
        return Err(TlsError::Setup(format!(
            "{} is not a coordinator's certificate; issue one with: muster-coordinator ca issue --role coordinator",
            credentials.identity()
        )));
    }
    let chain = WebPkiClientVerifier::builder_with_provider(Arc::clone(credentials.roots()), provider())
        .build()
        .map_err(|error| setup(&error))?;
    let verifier = MemberOfFleet { chain, fleet: credentials.fleet().clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| setup(&error))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(&credentials.inner.key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The URI by which a CA certificate names its fleet.
pub fn ca_uri(fleet: &FleetName) -> String {
    format!("{CA_SCHEME}{fleet}")
}

/// The fleet that a CA certificate was made for; `None` for a CA that is not Muster's.
pub fn ca_fleet(ca: &CertificateDer<'_>) -> Option<FleetName> {
    let ca = webpki::EndEntityCert::try_from(ca).ok()?;
    ca.valid_uri_names().find_map(|uri| FleetName::new(uri.strip_prefix(CA_SCHEME)?).ok())
}

/// SHA-256 of a certificate as people compare it: `sha256:` and 64 hexadecimal digits.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digest = Sha256::digest(certificate);
    digest.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn read_pem(path: &Path) -> Result<Vec<u8>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(read)?;
    if !metadata.is_file() || metadata.len() > PEM_BYTES_MAX {
        let problem = format!("is not a PEM file of at most {PEM_BYTES_MAX} bytes");
        return Err(TlsError::Content { path: path.to_owned(), problem });
    }
    std::fs::read(path).map_err(read)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let content = |problem: String| TlsError::Content { path: path.to_owned(), problem };
    let pem = read_pem(path)?;
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&pem).take(CERTIFICATES_PER_FILE_MAX + 1).collect();
    let certificates = certificates.map_err(|error| content(format!("is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(content("has no certificate; expected a line -----BEGIN CERTIFICATE-----".into()));
    }
    if certificates.len() > CERTIFICATES_PER_FILE_MAX {
        return Err(content(format!("has more than {CERTIFICATES_PER_FILE_MAX} certificates")));
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let pem = read_pem(path)?;
    refuse_exposed(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| TlsError::Content {
        path: path.to_owned(),
        problem: format!("has no private key ({error}); expected a line -----BEGIN PRIVATE KEY-----"),
    })
}

/// A group may read the key (systemd hands it over that way); everyone may not.
fn refuse_exposed(path: &Path) -> Result<(), TlsError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = std::fs::metadata(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o007 != 0 {
        return Err(TlsError::KeyExposed { path: path.to_owned(), mode });
    }
    Ok(())
}

/// Turns "good chain, wrong holder" into a TLS error that says so.
fn refuse(problem: String) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(WrongHolder(problem)))).into()
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongHolder(String);

fn check_fleet(certificate: &CertificateDer<'_>, fleet: &FleetName) -> Result<Identity, rustls::Error> {
    let identity = peer_identity(std::slice::from_ref(certificate)).map_err(|error| refuse(error.to_string()))?;
    if &identity.fleet != fleet {
        return Err(refuse(format!("{identity} is of another fleet, this one is {fleet}")));
    }
    Ok(identity)
}

/// The part of both verifiers that is the chain's alone.
macro_rules! signatures_by_chain {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.chain.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.chain.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.chain.supported_verify_schemes()
        }
    };
}

#[derive(Debug)]
struct CoordinatorOfFleet {
    chain: Arc<WebPkiServerVerifier>,
    fleet: FleetName,
}

impl ServerCertVerifier for CoordinatorOfFleet {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let identity = check_fleet(end_entity, &self.fleet)?;
        if identity.role != Role::Coordinator {
            return Err(refuse(format!("{identity} is not a coordinator")));
        }
        Ok(verified)
    }

    signatures_by_chain!();
}

#[derive(Debug)]
struct MemberOfFleet {
    chain: Arc<dyn ClientCertVerifier>,
    fleet: FleetName,
}

impl ClientCertVerifier for MemberOfFleet {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        check_fleet(end_entity, &self.fleet)?;
        Ok(verified)
    }

    signatures_by_chain!();
}
