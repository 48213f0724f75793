//! Configuration: deserialize, validate, build.
