//! Health probes and metrics over HTTP.
