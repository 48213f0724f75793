//! The error of an invalid setting.

use thiserror::Error;

/// The error of an invalid setting. A retry does not help; the configuration must be changed. The text names the
/// setting but never contains a value that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Misconfigured(pub String);
