//! An epoch with the proof that a coordinator of this fleet claimed it.
//!
//! Agents pass epochs on: whoever hears a higher one stops. Without a proof, any agent could stop a primary by
//! inventing a number; with it, only the holder of a coordinator's key can.
//!
//! A proof outlives its certificate: an epoch claimed last year is still the highest claimed, although the
//! certificate it was claimed with may have expired since. So the chain is checked at a time at which it was valid.
//! What protects against a stolen old key is to change the CA.

use crate::ids::Epoch;

/// Bytes of a certificate chain in a proof: two P-256 certificates have about 1.2 KiB.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;
/// Certificates in a proof.
pub const CHAIN_CERTIFICATES_MAX: usize = 4;
/// Bytes of a signature; RSA-4096 has 512.
pub const SIGNATURE_BYTES_MAX: usize = 1024;

/// A claim: "I am the coordinator of this name, and this is my epoch".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochProof {
    /// What is claimed.
    pub epoch: Epoch,
    /// Certificates of the claimant, DER, leaf first.
    pub certificate_chain: Vec<Vec<u8>>,
    /// Signature over the claim by the key of the leaf.
    pub signature: Vec<u8>,
}

/// Why a claim is not believed, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Larger than any proof is.
    #[error("the proof of the epoch is too large")]
    TooLarge,
    /// No certificate, or one that is none.
    #[error("the proof of the epoch has no readable certificate")]
    NoCertificate,
    /// The certificate names nobody of a fleet.
    #[error("the certificate in the proof of the epoch names nobody: {0}")]
    Identity(#[from] crate::identity::IdentityError),
    /// Somebody who may not claim, or claims in another's name.
    #[error("{claimant} may not claim epoch {epoch}: only the coordinator of that name in this fleet may")]
    WrongClaimant {
        /// Who signed.
        claimant: String,
        /// What is claimed.
        epoch: Epoch,
    },
    /// Not from the fleet's CA.
    #[error("the certificate in the proof of the epoch is not of this fleet's CA: {0}")]
    Chain(String),
    /// The signature is not of that key over that claim.
    #[error("the signature of the claim to epoch {0} is wrong")]
    Signature(Epoch),
    /// Our own key cannot sign.
    #[error("cannot sign the claim to an epoch: {0}")]
    Sign(String),
}

#[cfg(feature = "tls")]
pub use signed::{sign, verify};

#[cfg(feature = "tls")]
mod signed {
    use super::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX, Epoch, EpochProof, ProofError, SIGNATURE_BYTES_MAX};
    use crate::identity::{Identity, Role};
    use crate::ids::FleetName;
    use crate::tls::{Credentials, peer_identity, provider};
    use rustls::RootCertStore;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use std::time::Duration;
    use webpki::{EndEntityCert, KeyUsage};

    /// Separates this signature from every other use of the key. Its first bytes cannot begin a TLS 1.3 handshake
    /// signature (64 spaces) or a certificate request.
    const DOMAIN: &[u8] = b"muster epoch claim v1";
    /// Leaf, intermediate and CA may each have expired at another time.
    const TIMES_TRIED_MAX: usize = 4;

    /// Claims `epoch` with the key of our certificate; refused when the certificate is not that coordinator's.
    pub fn sign(credentials: &Credentials, epoch: &Epoch) -> Result<EpochProof, ProofError> {
        check_claimant(credentials.identity(), credentials.fleet(), epoch)?;
        let signature = credentials
            .sign(&message(credentials.fleet(), epoch))
            .map_err(|error| ProofError::Sign(error.to_string()))?;
        let certificate_chain = credentials.chain().iter().map(|certificate| certificate.to_vec()).collect();
        Ok(EpochProof { epoch: epoch.clone(), certificate_chain, signature })
    }

    /// Believes a claim, or says why not. `now` is the Unix time in milliseconds; a certificate that has expired by
    /// then (or is not valid yet by a clock that is behind) is checked at the nearest time of its validity.
    pub fn verify(
        proof: &EpochProof,
        roots: &RootCertStore,
        fleet: &FleetName,
        now_unix_ms: i64,
    ) -> Result<Epoch, ProofError> {
        let bytes: usize = proof.certificate_chain.iter().map(Vec::len).sum();
        if bytes > CHAIN_BYTES_MAX
            || proof.certificate_chain.len() > CHAIN_CERTIFICATES_MAX
            || proof.signature.len() > SIGNATURE_BYTES_MAX
        {
            return Err(ProofError::TooLarge);
        }
        let chain: Vec<CertificateDer<'_>> =
            proof.certificate_chain.iter().map(|certificate| CertificateDer::from(certificate.as_slice())).collect();
        let (leaf, intermediates) = chain.split_first().ok_or(ProofError::NoCertificate)?;
        check_claimant(&peer_identity(std::slice::from_ref(leaf))?, fleet, &proof.epoch)?;
        let leaf = EndEntityCert::try_from(leaf).map_err(|_| ProofError::NoCertificate)?;
        check_chain(&leaf, intermediates, roots, now_unix_ms)?;
        check_signature(&leaf, proof, fleet)?;
        Ok(proof.epoch.clone())
    }

    fn check_claimant(claimant: &Identity, fleet: &FleetName, epoch: &Epoch) -> Result<(), ProofError> {
        let may = claimant.role == Role::Coordinator
            && &claimant.fleet == fleet
            && claimant.name == epoch.coordinator.as_str();
        if may {
            return Ok(());
        }
        Err(ProofError::WrongClaimant { claimant: claimant.to_string(), epoch: epoch.clone() })
    }

    fn check_chain(
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now_unix_ms: i64,
    ) -> Result<(), ProofError> {
        let algorithms = provider().signature_verification_algorithms;
        let now = Duration::from_millis(u64::try_from(now_unix_ms).unwrap_or_default());
        let mut time = UnixTime::since_unix_epoch(now);
        let mut problem = webpki::Error::UnknownIssuer;
        for _ in 0..TIMES_TRIED_MAX {
            let usage = KeyUsage::client_auth();
            problem = match leaf.verify_for_usage(algorithms.all, &roots.roots, intermediates, time, usage, None, None)
            {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            time = match problem {
                webpki::Error::CertExpired { not_after, .. } => not_after,
                webpki::Error::CertNotValidYet { not_before, .. } => not_before,
                _ => break,
            };
        }
        Err(ProofError::Chain(problem.to_string()))
    }

    fn check_signature(leaf: &EndEntityCert<'_>, proof: &EpochProof, fleet: &FleetName) -> Result<(), ProofError> {
        let message = message(fleet, &proof.epoch);
        let algorithms = provider().signature_verification_algorithms;
        // The leaf's key decides which algorithm can match at all; the proof carries no choice to be abused.
        let good = algorithms
            .all
            .iter()
            .any(|algorithm| leaf.verify_signature(*algorithm, &message, &proof.signature).is_ok());
        if good { Ok(()) } else { Err(ProofError::Signature(proof.epoch.clone())) }
    }

    /// The bytes that are signed. Names have their length before them, so that no two claims share their bytes.
    fn message(fleet: &FleetName, epoch: &Epoch) -> Vec<u8> {
        let mut message = DOMAIN.to_vec();
        message.push(0);
        for text in [fleet.as_str(), epoch.coordinator.as_str()] {
            message.extend_from_slice(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
            message.extend_from_slice(text.as_bytes());
        }
        message.extend_from_slice(&epoch.number.to_be_bytes());
        message
    }
}
