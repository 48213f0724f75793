//! Reading of settings: a file and the environment become a tree of values with their origins, from which sections read
//! typed keys. Errors name the place and what was expected.
//!
//! ```text
//!   text, environment ─▶ tree ─▶ Section::duration("epoch") ─▶ value │ Diagnostics
//! ```

mod address;
pub mod environment;
mod key;
mod read;
pub mod renamed;
pub mod secrets;
pub mod tree;
mod values;

pub use address::Server;
pub use key::Key;
pub(crate) use key::keys;
pub use read::{ConfigError, Diagnostics, Section, nearest};
pub use tree::{Node, Origin};
pub use values::duration_ms;

/// Returns a duration of whole milliseconds that is not negative.
pub fn millis(ms: i64) -> std::time::Duration {
    std::time::Duration::from_millis(ms.unsigned_abs())
}
