//! The built-in CA, and what its certificates open: who may connect to whom, and whose epoch is believed.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use muster_common::epoch_proof::{self, EpochProof, ProofError};
use muster_common::identity::Role;
use muster_common::ids::{CoordinatorId, Epoch};
use muster_common::tls::{Credentials, TlsError, client_config, provider, server_config};
use muster_coordinator::ca::{self, CaError, IssueRequest, Issued};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use tokio_rustls::{TlsAcceptor, TlsConnector};

type Anyhow = Result<(), Box<dyn std::error::Error>>;

/// A CA for fleet `prod` in `DIR/ca`.
fn house() -> TempDir {
    let dir = TempDir::new().unwrap();
    ca::init(&dir.path().join("ca"), "prod").unwrap();
    dir
}

fn issue(dir: &Path, role: Role, name: &str, days: u32) -> Result<Issued, CaError> {
    let sans = ["127.0.0.1".to_owned(), "coord.example".to_owned()];
    ca::issue(&dir.join("ca"), &IssueRequest { role, name, sans: &sans, days }, &dir.join(name))
}

fn load(dir: &Path) -> Result<Credentials, TlsError> {
    Credentials::load(&dir.join("ca.pem"), &dir.join("cert.pem"), &dir.join("key.pem"))
}

fn member(dir: &Path, role: Role, name: &str) -> Credentials {
    issue(dir, role, name, 30).unwrap();
    load(&dir.join(name)).unwrap()
}

/// A certificate of the fleet's own CA with whatever names somebody talked it into.
fn crafted(dir: &Path, uri: &str) -> Credentials {
    crafted_files(dir, uri);
    load(&dir.join("crafted")).unwrap()
}

fn crafted_files(dir: &Path, uri: &str) {
    let read = |file: &str| std::fs::read_to_string(dir.join("ca").join(file)).unwrap();
    let key = KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.pem"), key).unwrap();
    let mut params = CertificateParams::new(vec!["coord.example".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let out = dir.join("crafted");
    std::fs::create_dir_all(&out).unwrap();
    std::fs::copy(dir.join("ca/ca.pem"), out.join("ca.pem")).unwrap();
    std::fs::write(out.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(out.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::set_permissions(out.join("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_ca_is_never_overwritten_and_its_key_is_closed() -> Anyhow {
    let dir = house();
    let mode = |file: &str| std::fs::metadata(dir.path().join(file)).map(|m| m.permissions().mode() & 0o777);
    assert_eq!(mode("ca/ca-key.pem")?, 0o600);
    let before = std::fs::read(dir.path().join("ca/ca-key.pem"))?;
    assert!(matches!(ca::init(&dir.path().join("ca"), "prod"), Err(CaError::CaExists(_))));
    assert_eq!(std::fs::read(dir.path().join("ca/ca-key.pem"))?, before);
    issue(dir.path(), Role::Agent, "web-1", 30)?;
    assert_eq!(mode("web-1/key.pem")?, 0o600);
    Ok(())
}

#[test]
fn a_certificate_says_who_its_holder_is() -> Anyhow {
    let dir = house();
    for role in [Role::Agent, Role::Operator, Role::Viewer, Role::Coordinator] {
        let name = format!("{role}-1");
        let issued = issue(dir.path(), role, &name, 30)?;
        let credentials = load(&dir.path().join(&name))?;
        assert_eq!(credentials.identity(), &issued.identity);
        assert_eq!(issued.identity.to_string(), format!("muster://prod/{role}/{name}"));
        assert_eq!(credentials.ca_fingerprint(), issued.ca_fingerprint);
        assert!(issued.ca_fingerprint.starts_with("sha256:") && issued.ca_fingerprint.len() == 7 + 64);
    }
    Ok(())
}

#[test]
fn a_holder_may_be_renewed_but_not_replaced_by_another() -> Anyhow {
    let dir = house();
    assert!(!issue(dir.path(), Role::Agent, "web-1", 30)?.replaced);
    assert!(issue(dir.path(), Role::Agent, "web-1", 30)?.replaced);
    load(&dir.path().join("web-1"))?;
    let error = issue(dir.path(), Role::Operator, "web-1", 30).unwrap_err();
    assert!(error.to_string().contains("holds the certificate of muster://prod/agent/web-1"), "{error}");
    Ok(())
}

#[test]
fn mistakes_are_named() {
    let dir = house();
    let (ca_dir, out, sans) = (dir.path().join("ca"), dir.path().join("out"), ["not a host".to_owned()]);
    let request = IssueRequest { role: Role::Coordinator, name: "a", sans: &[], days: 1 };
    let error = ca::issue(&ca_dir, &IssueRequest { name: "a b", ..request.clone() }, &out).unwrap_err();
    assert!(error.to_string().contains("--name \"a b\""), "{error}");
    let error = ca::issue(&ca_dir, &IssueRequest { sans: &sans, ..request.clone() }, &out).unwrap_err();
    assert!(error.to_string().contains("--san \"not a host\""), "{error}");
    let error = ca::issue(&dir.path().join("nowhere"), &request, &out).unwrap_err();
    assert!(error.to_string().contains("ca init"), "{error}");
    let error = ca::init(&dir.path().join("other"), "two words").unwrap_err();
    assert!(error.to_string().contains("--fleet \"two words\""), "{error}");
}

#[test]
fn an_open_key_a_missing_file_and_a_wrong_pair_are_refused() -> Anyhow {
    let dir = house();
    issue(dir.path(), Role::Agent, "a", 30)?;
    issue(dir.path(), Role::Agent, "b", 30)?;
    let path = |file: &str| dir.path().join(file);
    let error = Credentials::load(&path("a/ca.pem"), &path("a/cert.pem"), &path("b/key.pem")).unwrap_err();
    assert!(matches!(error, TlsError::Pair { .. }), "{error}");
    let error = Credentials::load(&path("a/ca.pem"), &path("a/none.pem"), &path("a/key.pem")).unwrap_err();
    assert!(matches!(error, TlsError::Read { .. }) && error.to_string().contains("none.pem"), "{error}");
    let error = Credentials::load(&path("a/ca.pem"), &path("a/key.pem"), &path("a/key.pem")).unwrap_err();
    assert!(error.to_string().contains("has no certificate"), "{error}");
    let error = Credentials::load(&path("a/ca.pem"), &path("a/ca.pem"), &path("a/key.pem")).unwrap_err();
    assert!(matches!(error, TlsError::Identity { .. }), "{error}");
    std::fs::set_permissions(path("a/key.pem"), std::fs::Permissions::from_mode(0o644))?;
    let error = load(&path("a")).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");
    Ok(())
}

/// Both ends' view of a handshake: what the server thinks, then what the client thinks after a first answer.
async fn shake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
    host: &'static str,
) -> (Result<(), String>, Result<(), String>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut stream = TlsAcceptor::from(server).accept(ours).await.map_err(|error| error.to_string())?;
        stream.write_all(b"!").await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())
    };
    let connect = async {
        let name = ServerName::try_from(host).unwrap();
        let mut stream = TlsConnector::from(client).connect(name, theirs).await.map_err(|error| error.to_string())?;
        // With TLS 1.3 the client learns of its refusal only when it reads.
        stream.read_u8().await.map(drop).map_err(|error| error.to_string())
    };
    tokio::join!(serve, connect)
}

#[tokio::test]
async fn the_fleet_s_members_get_in() {
    let dir = house();
    let server = server_config(&member(dir.path(), Role::Coordinator, "coord-a")).unwrap();
    for role in [Role::Agent, Role::Operator, Role::Viewer, Role::Coordinator] {
        let client = client_config(&member(dir.path(), role, &format!("{role}-1"))).unwrap();
        for host in ["coord.example", "127.0.0.1", "coord-a"] {
            assert_eq!(shake(Arc::clone(&server), Arc::clone(&client), host).await, (Ok(()), Ok(())), "{role} {host}");
        }
    }
}

#[tokio::test]
async fn strangers_do_not_get_in() {
    let (dir, other) = (house(), house());
    let server = server_config(&member(dir.path(), Role::Coordinator, "coord-a")).unwrap();
    let ours = member(dir.path(), Role::Agent, "web-1");

    // The same fleet name, another CA: neither side believes the other.
    let stranger = client_config(&member(other.path(), Role::Agent, "web-1")).unwrap();
    let (served, connected) = shake(Arc::clone(&server), stranger, "coord.example").await;
    assert!(served.is_err() && connected.is_err(), "{served:?} {connected:?}");

    // No certificate at all.
    let anonymous = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Arc::clone(ours.roots()))
        .with_no_client_auth();
    let (served, connected) = shake(Arc::clone(&server), Arc::new(anonymous), "coord.example").await;
    assert!(served.unwrap_err().contains("peer sent no certificates"));
    assert!(connected.is_err());

    // The right CA, a name of another fleet.
    crafted(dir.path(), "muster://test/agent/web-1");
    let foreigner = careless_client(&dir.path().join("crafted"), &ours);
    let (served, connected) = shake(Arc::clone(&server), foreigner, "coord.example").await;
    assert!(served.unwrap_err().contains("of another fleet"));
    assert!(connected.is_err());

    // A host name the certificate does not have.
    let client = client_config(&ours).unwrap();
    let (_, connected) = shake(server, client, "elsewhere.example").await;
    assert!(connected.unwrap_err().contains("not valid for name"));
}

/// What a stranger would run: presents the certificate in `dir` and checks only the chain of the server.
fn careless_client(dir: &Path, ours: &Credentials) -> Arc<rustls::ClientConfig> {
    let (chain, key) = pem_pair(dir);
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(Arc::clone(ours.roots()))
        .with_client_auth_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

fn pem_pair(dir: &Path) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap())
}

#[tokio::test]
async fn only_a_coordinator_of_the_fleet_is_believed_to_be_one() {
    let dir = house();
    let client = client_config(&member(dir.path(), Role::Agent, "web-1")).unwrap();
    let error = server_config(&member(dir.path(), Role::Operator, "ann")).unwrap_err();
    assert!(error.to_string().contains("--role coordinator"), "{error}");
    for (uri, why) in [
        ("muster://prod/agent/web-2", "is not a coordinator"),
        ("muster://test/coordinator/coord-a", "of another fleet"),
        ("https://prod/coordinator/coord-a", "0 muster:// names"),
    ] {
        crafted_files(dir.path(), uri);
        let (chain, key) = pem_pair(&dir.path().join("crafted"));
        let server = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let (_, connected) = shake(Arc::new(server), Arc::clone(&client), "coord.example").await;
        let error = connected.unwrap_err();
        assert!(error.contains(why), "{uri}: {error}");
    }
}

fn epoch(number: u64, coordinator: &str) -> Epoch {
    Epoch { number, coordinator: CoordinatorId::new(coordinator).unwrap() }
}

/// Verified by a member of the fleet that did not sign it, at a time within the certificate's life.
fn verify(proof: &EpochProof, judge: &Credentials) -> Result<Epoch, ProofError> {
    epoch_proof::verify(proof, judge.roots(), judge.fleet(), jiff::Timestamp::now().as_millisecond())
}

#[test]
fn a_claim_is_believed_and_every_other_one_is_not() {
    let (dir, other) = (house(), house());
    let judge = member(dir.path(), Role::Agent, "web-1");
    let coordinator = member(dir.path(), Role::Coordinator, "coord-a");
    let good = epoch_proof::sign(&coordinator, &epoch(3, "coord-a")).unwrap();
    assert_eq!(verify(&good, &judge), Ok(epoch(3, "coord-a")));

    // Another number or another name under the same signature.
    let raised = EpochProof { epoch: epoch(4, "coord-a"), ..good.clone() };
    assert!(matches!(verify(&raised, &judge), Err(ProofError::Signature(_))));
    let renamed = EpochProof { epoch: epoch(3, "coord-b"), ..good.clone() };
    assert!(matches!(verify(&renamed, &judge), Err(ProofError::WrongClaimant { .. })));
    // A coordinator claims in its own name only, and an agent not at all.
    assert!(epoch_proof::sign(&coordinator, &epoch(4, "coord-b")).is_err());
    assert!(epoch_proof::sign(&judge, &epoch(4, "web-1")).is_err());
    // An agent puts its own certificate and anything else under the claim.
    let chain = judge.chain().iter().map(|certificate| certificate.to_vec()).collect();
    let forged = EpochProof { epoch: epoch(9, "web-1"), certificate_chain: chain, signature: good.signature.clone() };
    assert!(matches!(verify(&forged, &judge), Err(ProofError::WrongClaimant { .. })));
    // The same names under another CA.
    let foreign = epoch_proof::sign(&member(other.path(), Role::Coordinator, "coord-a"), &epoch(9, "coord-a")).unwrap();
    assert!(matches!(verify(&foreign, &judge), Err(ProofError::Chain(_))));
    // Another fleet under the same CA.
    let elsewhere = crafted(dir.path(), "muster://test/coordinator/coord-a");
    let elsewhere = epoch_proof::sign(&elsewhere, &epoch(9, "coord-a")).unwrap();
    assert!(matches!(verify(&elsewhere, &judge), Err(ProofError::WrongClaimant { .. })));
    // Nothing, and too much.
    let empty = EpochProof { certificate_chain: Vec::new(), ..good.clone() };
    assert_eq!(verify(&empty, &judge), Err(ProofError::NoCertificate));
    let large = EpochProof { signature: vec![0; 2000], ..good.clone() };
    assert_eq!(verify(&large, &judge), Err(ProofError::TooLarge));
    let garbage = EpochProof { certificate_chain: vec![vec![0x30; 40]], ..good };
    assert!(verify(&garbage, &judge).is_err());
}

#[test]
fn a_claim_outlives_its_certificate_and_survives_a_wrong_clock() {
    let dir = house();
    let judge = member(dir.path(), Role::Agent, "web-1");
    let coordinator = member(dir.path(), Role::Coordinator, "coord-a");
    let proof = epoch_proof::sign(&coordinator, &epoch(3, "coord-a")).unwrap();
    let year_ms = 365 * 24 * 3_600_000;
    let now = jiff::Timestamp::now().as_millisecond();
    for time in [0, -1, now + year_ms, now + 20 * year_ms, i64::MAX] {
        let believed = epoch_proof::verify(&proof, judge.roots(), judge.fleet(), time);
        assert_eq!(believed, Ok(epoch(3, "coord-a")), "at {time}");
    }
}
