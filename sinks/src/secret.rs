//! Text that must not be shown.

use std::fmt;

/// Text that may contain a password. It cannot be printed or serialised. Only [`expose`](Secret::expose) returns it, to
/// make a connection.
///
/// ```
/// let secret = headwater_sinks::Secret::from("hunter2");
/// assert_eq!(format!("{secret:?}"), "***");
/// assert_eq!(secret.expose(), "hunter2");
/// ```
///
/// There is no `Display`:
///
/// ```compile_fail
/// println!("{}", headwater_sinks::Secret::from("hunter2"));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    /// Returns the text itself, to make a connection.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret(text.into())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Secret {
        Secret(text.into())
    }
}
