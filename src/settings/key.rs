//! The keys of the configuration: defaults, and the documentation from which the reference is made.

/// A key of the configuration.
pub struct Key {
    /// The path, separated by dots.
    pub path: &'static str,
    /// The default, as TOML.
    pub default: Option<&'static str>,
    /// True if the key must be set whenever its section exists.
    pub required: bool,
    /// The meaning of the key, and the reason for its default.
    pub doc: &'static str,
}

macro_rules! keys {
    (@default) => { None };
    (@default required) => { None };
    (@default $default:literal) => { Some($default) };
    (@required required) => { true };
    (@required $($default:literal)?) => { false };
    ($($path:literal $(= $default:tt)? : $doc:literal)*) => {
        &[$($crate::settings::Key { path: $path, default: $crate::settings::keys!(@default $($default)?), required: $crate::settings::keys!(@required $($default)?), doc: $doc }),*]
    };
}

pub(crate) use keys;
