//! Signatures of webhooks, as the specification of Standard Webhooks defines them: the HMAC-SHA256 of id, time and body.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use headwater_sinks::Secret;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The prefix of a secret.
const PREFIX: &str = "whsec_";

/// Signs a message. Returns the value of the header `webhook-signature`.
///
/// # Errors
/// If the secret is not valid: see [`check_secret`].
pub fn sign(secret: &Secret, id: &str, seconds: i64, body: &str) -> Result<String, String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key(secret)?).expect("HMAC takes keys of any length");
    for part in [id, ".", &seconds.to_string(), ".", body] {
        mac.update(part.as_bytes());
    }
    Ok(format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes())))
}

/// Checks that a secret is `whsec_` and 24 to 64 bytes in Base64.
///
/// # Errors
/// The expected form. It does not repeat the secret.
pub fn check_secret(secret: &Secret) -> Result<(), String> {
    key(secret).map(drop)
}

fn key(secret: &Secret) -> Result<Vec<u8>, String> {
    let key = secret.expose().strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok());
    key.filter(|key| (24..=64).contains(&key.len())).ok_or_else(|| {
        format!(
            "expected `{PREFIX}` and 24 to 64 random bytes in Base64, as the receiver shows it or as \
             `echo {PREFIX}$(openssl rand -base64 32)` makes it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_equals_the_published_test_vector() {
        let secret = Secret::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signature =
            sign(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, "{\"test\": 2432232314}");
        assert_eq!(signature.as_deref(), Ok("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn a_secret_needs_its_prefix_and_enough_bytes() {
        for wrong in ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64"] {
            let message = check_secret(&Secret::from(wrong)).expect_err(wrong);
            assert!(!message.contains(wrong) || wrong == "whsec_", "{message}");
        }
    }
}
