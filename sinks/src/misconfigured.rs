//! The error of a setting that cannot be used as it is.

use thiserror::Error;

/// A setting cannot be used: trying again does not help, changing the configuration does. The text names the setting
/// and never the value of one that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Misconfigured(pub String);
