//! Certificates for a whole fleet at once: signed by the fleet's own CA, one for each agent, all over one key, since
//! what is measured is what the coordinator sees and not how agents make keys.

use anyhow::{Context, Result};
use muster_common::tls::{Credentials, client_config, provider};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use std::path::Path;
use std::sync::Arc;

/// Issues the TLS side of agents.
pub(crate) struct Papers {
    issuer: Issuer<'static, KeyPair>,
    key: KeyPair,
    signer: Arc<dyn rustls::sign::SigningKey>,
    base: Arc<ClientConfig>,
    fleet: String,
}

impl Papers {
    /// `ca` is the CA's folder, `member` a folder with any certificate of the fleet.
    pub(crate) fn new(ca: &Path, member: &Path) -> Result<Self> {
        let file = |name: &str| ca.join(name);
        let ca_der = CertificateDer::from_pem_file(file("ca.pem")).context("cannot read the CA")?;
        let ca_key = KeyPair::from_pem(&std::fs::read_to_string(file("ca-key.pem"))?)?;
        let key = KeyPair::generate()?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&ca_der, ca_key)?,
            signer: provider().key_provider.load_private_key(der)?,
            key,
            base: credentials(member).and_then(|credentials| Ok(client_config(&credentials)?))?,
            fleet: credentials(member)?.fleet().to_string(),
        })
    }

    /// What the agent `name` connects with.
    pub(crate) fn agent(&self, name: &str) -> Result<Arc<ClientConfig>> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::URI(format!("muster://{}/agent/{name}", self.fleet).try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], Arc::clone(&self.signer));
        let mut config = ClientConfig::clone(&self.base);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        Ok(Arc::new(config))
    }
}

/// What `muster-coordinator ca issue` left in a folder.
pub(crate) fn credentials(folder: &Path) -> Result<Credentials> {
    let file = |name: &str| folder.join(name);
    Ok(Credentials::load(&file("ca.pem"), &file("cert.pem"), &file("key.pem"))?)
}
