//! Proofs that both ends of a connection know the secret of the cluster: HMACs over nonces of both, in hexadecimal digits.

use headwater_sinks::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The key of proofs without a secret, between processes of one machine.
const NO_SECRET: &[u8] = b"a cluster without a secret";

/// The length of a nonce.
pub(super) const NONCE: usize = 32;

/// The nonces of both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonces {
    /// That of the end which has connected.
    pub connects: String,
    /// That of the end which has accepted.
    pub accepts: String,
}

/// Returns a nonce.
///
/// # Errors
/// If the system has no random numbers.
pub fn nonce() -> std::io::Result<String> {
    random().map(|bytes| crate::lists::hex(&bytes))
}

/// Returns the bytes of a nonce.
pub(super) fn random() -> std::io::Result<[u8; NONCE]> {
    let mut bytes = [0; NONCE];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(bytes)
}

/// Returns an HMAC of nothing yet, with the secret as its key.
pub(super) fn mac(secret: Option<&Secret>) -> Hmac<Sha256> {
    let key = secret.map_or(NO_SECRET, |secret| secret.expose().as_bytes());
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

impl Nonces {
    fn mac(&self, role: &str, text: &str, secret: Option<&Secret>) -> Hmac<Sha256> {
        let mut mac = mac(secret);
        for part in [role, &self.connects, &self.accepts, text] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// Returns the proof of the end with this role, about a text on which both agree.
    pub fn prove(&self, role: &str, text: &str, secret: Option<&Secret>) -> String {
        crate::lists::hex(&self.mac(role, text, secret).finalize().into_bytes())
    }

    /// Returns true if this is the proof of the other end.
    pub fn is_proved(&self, role: &str, text: &str, secret: Option<&Secret>, proof: &str) -> bool {
        let byte = |at: usize| proof.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let bytes: Option<Vec<u8>> = (0..proof.len()).step_by(2).map(byte).collect();
        bytes.is_some_and(|bytes| self.mac(role, text, secret).verify_slice(&bytes).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_of_its_role_nonces_text_and_secret() {
        let nonces = Nonces { connects: nonce().expect("random"), accepts: nonce().expect("random") };
        let (one, other) = (Secret::from(&*"a".repeat(32)), Secret::from(&*"b".repeat(32)));
        let proof = nonces.prove("leader", "fraud", Some(&one));
        assert!(nonces.is_proved("leader", "fraud", Some(&one), &proof));
        let turned = Nonces { connects: nonces.accepts.clone(), accepts: nonces.connects.clone() };
        assert!(!turned.is_proved("leader", "fraud", Some(&one), &proof));
        for (role, text, secret) in [
            ("member", "fraud", Some(&one)),
            ("leader", "orders", Some(&one)),
            ("leader", "fraud", Some(&other)),
        ] {
            assert!(!nonces.is_proved(role, text, secret, &proof), "{role} {text}");
        }
        assert!(!nonces.is_proved("leader", "fraud", None, &proof));
        for broken in ["", "0", "zz", "\u{e9}\u{e9}", &proof[2..]] {
            assert!(!nonces.is_proved("leader", "fraud", Some(&one), broken), "{broken}");
        }
    }
}
