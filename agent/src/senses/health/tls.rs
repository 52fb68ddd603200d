//! The TLS side of a request: which roots are trusted, and what certificate was presented.
//!
//! A certificate is always verified. It is also kept when it is refused: that it has run out is what people must know.

use muster_common::tls::provider;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Where distributions keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Bytes of a file of roots: a distribution's is 250 KiB.
const ROOTS_BYTES_MAX: u64 = 2 << 20;

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootsError {
    #[error("the ca file {0} cannot be read: {1}")]
    Read(String, std::io::Error),
    #[error("the ca file {0} has no usable certificate{1}")]
    Content(String, String),
    #[error("none of the usual files of trusted roots exists; name the service's own CA with `ca`")]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Roots as they were read, and the state of their file: read again when it changed.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    path: PathBuf,
    stamp: Option<(u64, SystemTime)>,
    roots: Arc<RootCertStore>,
}

impl Trust {
    /// The roots in `ca`, or the system's; `known` where nothing changed. Reads files: not for the net thread.
    pub(super) fn load(ca: Option<&Path>, known: Option<Self>) -> Result<Self, RootsError> {
        let system = || SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.is_file());
        let path = ca.map(Path::to_owned).or_else(system).ok_or(RootsError::NoSystemRoots)?;
        let shown = path.display().to_string();
        let metadata = std::fs::metadata(&path).map_err(|error| RootsError::Read(shown.clone(), error))?;
        let stamp = metadata.modified().ok().map(|modified| (metadata.len(), modified));
        if let Some(known) = known.filter(|known| stamp.is_some() && known.stamp == stamp && known.path == path) {
            return Ok(known);
        }
        if !metadata.is_file() || metadata.len() > ROOTS_BYTES_MAX {
            let why = format!(": it is no file of at most {ROOTS_BYTES_MAX} bytes");
            return Err(RootsError::Content(shown, why));
        }
        let pem = std::fs::read(&path).map_err(|error| RootsError::Read(shown.clone(), error))?;
        let mut roots = RootCertStore::empty();
        // A bundle may hold old roots that nobody can use; the others count.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
        if roots.is_empty() {
            let why = ": expected a line -----BEGIN CERTIFICATE-----".to_owned();
            return Err(RootsError::Content(shown, why));
        }
        Ok(Self { path, stamp, roots: Arc::new(roots) })
    }

    /// A config for one handshake, and where the certificate that is presented will be.
    pub(super) fn config(&self) -> Result<(Arc<ClientConfig>, Arc<Witness>), RootsError> {
        let setup = |error: &dyn std::fmt::Display| RootsError::Setup(error.to_string());
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(|error| setup(&error))?;
        let witness = Arc::new(Witness { chain, presented: Mutex::new(None) });
        let verifier: Arc<dyn ServerCertVerifier> = Arc::clone(&witness) as _;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok((Arc::new(config), witness))
    }
}

/// Verifies as usual, and keeps what was presented.
#[derive(Debug)]
pub(super) struct Witness {
    chain: Arc<WebPkiServerVerifier>,
    presented: Mutex<Option<Vec<u8>>>,
}

impl Witness {
    /// The DER of the certificate that was presented.
    pub(super) fn presented(&self) -> Option<Vec<u8>> {
        self.presented.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.presented.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.to_vec());
        self.chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

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
}
