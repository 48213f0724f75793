//! Traces: a span for each round of commits, with its steps as children, sent to an OpenTelemetry collector by OTLP.
//!
//! ```text
//!   worker ─ RoundRecorder ─ sampled? ─▶ bounded queue ─▶ thread `otlp`: spans, batch ─ POST ─▶ collector
//!                                           │ full                                  └ again, for at most 30 s
//!                                           └──────────▶ counted as dropped ◀────────── given up, or rejected
//! ```
//!
//! Nothing of a run waits for the collector, except its end, for at most 2 s.

#[cfg(feature = "otlp")]
mod encode;
#[cfg(feature = "otlp")]
mod export;

#[cfg(feature = "otlp")]
pub use export::Exporter;

/// The export of traces, which a build without the feature `otlp` does not have.
#[cfg(not(feature = "otlp"))]
pub struct Exporter(std::convert::Infallible);

#[cfg(not(feature = "otlp"))]
impl Exporter {
    /// Refuses, since the program was built without OpenTelemetry.
    ///
    /// # Errors
    /// Always.
    pub fn start(
        _config: crate::config::OtlpConfig,
        _context: &headwater_sinks::WriterContext,
        _metrics: &crate::metrics::Metrics,
    ) -> std::io::Result<Exporter> {
        Err(std::io::Error::other(
            "this program was built without OpenTelemetry: build it with `--features otlp`",
        ))
    }

    /// Cannot be called: there is no exporter.
    pub fn end(self) {
        match self.0 {}
    }
}
