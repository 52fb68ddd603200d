//! A CA for tests.

use muster_common::ids::FleetName;
use muster_common::tls::{Credentials, ca_uri};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(crate) fn new(fleet: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![SanType::URI(ca_uri(&FleetName::new(fleet).unwrap()).try_into().unwrap())];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Credentials of `uri`, which may be reached as 127.0.0.1; their files are in `folder`.
    pub(crate) fn issue(&self, folder: &Path, uri: &str) -> Credentials {
        let [ca, certificate, key] = self.issue_files(folder, uri);
        Credentials::load(&ca, &certificate, &key).unwrap()
    }

    /// The files alone: of the CA, the certificate and the key.
    pub(crate) fn issue_files(&self, folder: &Path, uri: &str) -> [PathBuf; 3] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into().unwrap()),
            SanType::IpAddress(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let folder = tempfile::tempdir_in(folder).unwrap().keep();
        let [ca_file, certificate_file, key_file] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
        std::fs::write(&ca_file, self.0.pem()).unwrap();
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        [ca_file, certificate_file, key_file]
    }
}
