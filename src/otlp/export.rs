//! The thread that sends spans to the collector.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use headwater_sinks::WriterContext;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, USER_AGENT};
use prometheus::IntCounter;
use prost::Message;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::encode::{Encoder, TimedRound};
use crate::client::{Client, Endpoint, HttpOptions};
use crate::config::OtlpConfig;
use crate::metrics::Metrics;
use crate::rounds::RoundRecorder;
use crate::routes::{PostError, post};

/// The limits of the export.
#[derive(Clone, Copy, Debug)]
struct ExportLimits {
    /// The maximum number of rounds that wait to be sent.
    queue: usize,
    /// The maximum number of rounds in a request.
    batch: usize,
    /// The time for which rounds are collected for a request.
    linger: Duration,
    /// The time from the first attempt to send a request after which its spans are dropped.
    give_up: Duration,
    /// The pause after the first failure, which doubles up to the longest.
    pause: Duration,
    /// The longest pause between two attempts.
    longest_pause: Duration,
    /// The maximum time of the export after the end of the run.
    flush: Duration,
}

const LIMITS: ExportLimits = ExportLimits {
    queue: 2048,
    batch: 128,
    linger: Duration::from_secs(1),
    give_up: Duration::from_secs(30),
    pause: Duration::from_secs(1),
    longest_pause: Duration::from_secs(10),
    flush: Duration::from_secs(2),
};

/// Exports the rounds of a run. Dropping it sends what is left, for at most 2 s.
pub struct Exporter {
    metrics: Arc<Metrics>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Records the rounds of a run from now on, and starts the thread that exports them.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        config: OtlpConfig,
        context: &WriterContext,
        metrics: &Arc<Metrics>,
    ) -> std::io::Result<Exporter> {
        Exporter::with_limits(config, context, metrics, LIMITS)
    }

    /// Sends what is left, for at most 2 s. Dropping the exporter does the same.
    pub fn end(self) {}

    fn with_limits(
        config: OtlpConfig,
        context: &WriterContext,
        metrics: &Arc<Metrics>,
        limits: ExportLimits,
    ) -> std::io::Result<Exporter> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = Client::new().map_err(std::io::Error::other)?;
        let (sender, queue) = channel(limits.queue);
        let (stop, stopped) = oneshot::channel();
        let drops = Arc::new(Drops { count: metrics.spans_dropped(), logged: AtomicBool::new(false) });
        let (sampler, full) = (Sampler::new(config.sample_ratio), Arc::clone(&drops));
        metrics.record_rounds(RoundRecorder::new(Box::new(move |round| {
            if sampler.samples()
                && let Err(error) = sender.try_send(TimedRound::now(round))
            {
                full.add(error.into_inner().spans(), "the queue of spans is full");
            }
        })));
        let export = Export {
            client,
            headers: headers(&config),
            endpoint: config.endpoint,
            http: HttpOptions {
                allow_private: true,
                connect_timeout: config.timeout,
                timeout: config.timeout,
            },
            encoder: Encoder::new(config.service_name, context),
            queue,
            batch: Vec::new(),
            pending: None,
            drops,
            outage: None,
            limits,
        };
        let thread = std::thread::Builder::new().name("otlp".into()).spawn(move || {
            runtime.block_on(export.run(stopped));
            // Look-ups of names that do not end must not hold up the end of the run.
            runtime.shutdown_background();
        })?;
        Ok(Exporter { metrics: Arc::clone(metrics), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Some(rounds) = self.metrics.rounds() {
            rounds.finish();
        }
        drop(self.stop.take());
        // A panic of the thread has been logged; only spans are lost.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Returns the headers of requests.
fn headers(config: &OtlpConfig) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("headwater/", env!("CARGO_PKG_VERSION"))));
    headers.extend(config.headers.iter().cloned());
    headers
}

/// Chooses the rounds that are exported, at random.
struct Sampler {
    ratio: f64,
    keys: RandomState,
    count: AtomicU64,
}

impl Sampler {
    fn new(ratio: f64) -> Sampler {
        Sampler { ratio, keys: RandomState::new(), count: AtomicU64::new(0) }
    }

    /// Returns true if the next round is exported.
    fn samples(&self) -> bool {
        let random = self.keys.hash_one(self.count.fetch_add(1, Ordering::Relaxed));
        (random >> 11) as f64 / ((1u64 << 53) as f64) < self.ratio
    }
}

/// Counts the spans that are not exported, and logs the first time.
struct Drops {
    count: IntCounter,
    logged: AtomicBool,
}

impl Drops {
    fn add(&self, spans: u64, reason: &str) {
        self.count.inc_by(spans);
        if spans > 0 && !self.logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(reason, "spans are dropped; headwater_spans_dropped_total counts them");
        }
    }
}

/// A request with spans.
struct Request {
    body: Bytes,
    spans: u64,
}

struct Export {
    client: Client,
    endpoint: Endpoint,
    http: HttpOptions,
    headers: HeaderMap,
    encoder: Encoder,
    queue: Receiver<TimedRound>,
    /// The rounds that are collected for the next request.
    batch: Vec<TimedRound>,
    /// The request that is being sent.
    pending: Option<Request>,
    drops: Arc<Drops>,
    /// The number of dropped spans when the collector began to fail; None while it does not fail.
    outage: Option<u64>,
    limits: ExportLimits,
}

impl Export {
    /// Exports rounds until the run ends, and then what is left. What is not sent when the stop interrupts stays in
    /// `batch` and `pending`.
    async fn run(mut self, stopped: oneshot::Receiver<()>) {
        tokio::select! {
            _ = stopped => {}
            () = self.export() => {}
        }
        self.queue.close();
        let reason = match timeout(self.limits.flush, self.flush()).await {
            Ok(()) => "the collector did not accept them",
            Err(_) => "the run has ended, and the collector did not respond in time",
        };
        let mut left = self.pending.as_ref().map_or(0, |request| request.spans);
        left += self.batch.iter().map(TimedRound::spans).sum::<u64>();
        while let Ok(round) = self.queue.try_recv() {
            left += round.spans();
        }
        self.drops.add(left, reason);
        let dropped = self.drops.count.get();
        if dropped > 0 {
            tracing::warn!(dropped, "spans of this run were not exported");
        }
    }

    async fn export(&mut self) {
        while self.collect().await {
            self.prepare();
            self.deliver().await;
        }
    }

    /// Collects rounds for a request, for a second after the first. Returns false if there will be none.
    async fn collect(&mut self) -> bool {
        let Some(first) = self.queue.recv().await else { return false };
        self.batch.push(first);
        let until = Instant::now() + self.limits.linger;
        while self.batch.len() < self.limits.batch {
            tokio::select! {
                round = self.queue.recv() => match round {
                    Some(round) => self.batch.push(round),
                    None => break,
                },
                () = sleep_until(until) => break,
            }
        }
        true
    }

    /// Makes a request of the collected rounds. Its spans keep their ids when it is sent again.
    fn prepare(&mut self) {
        if self.pending.is_none() && !self.batch.is_empty() {
            let body = self.encoder.request(&self.batch).encode_to_vec().into();
            let spans = self.batch.drain(..).map(|round| round.spans()).sum();
            self.pending = Some(Request { body, spans });
        }
    }

    /// Sends the request until it succeeds, is rejected, or is given up.
    async fn deliver(&mut self) {
        let (begun, mut pause) = (Instant::now(), self.limits.pause);
        while self.pending.is_some() {
            match self.post().await {
                Ok(()) => self.succeed(),
                Err(PostError::Rejected(reason)) => {
                    self.fail(&reason);
                    self.drop_request(&reason);
                }
                Err(PostError::Failed(reason, _)) => {
                    self.fail(&reason);
                    if begun.elapsed() + pause > self.limits.give_up {
                        self.drop_request(&reason);
                    }
                    sleep(pause).await;
                    pause = (2 * pause).min(self.limits.longest_pause);
                }
            }
        }
    }

    /// Sends what is left, as long as the collector accepts it.
    async fn flush(&mut self) {
        loop {
            while self.pending.is_none()
                && self.batch.len() < self.limits.batch
                && let Ok(round) = self.queue.try_recv()
            {
                self.batch.push(round);
            }
            self.prepare();
            if self.pending.is_none() {
                return;
            }
            if let Err(PostError::Rejected(reason) | PostError::Failed(reason, _)) = self.post().await {
                return self.fail(&reason);
            }
            self.succeed();
        }
    }

    async fn post(&self) -> Result<(), PostError> {
        let Some(Request { body, .. }) = &self.pending else { return Ok(()) };
        post(&self.client, &self.endpoint, self.http, self.headers.clone(), body.clone()).await
    }

    fn succeed(&mut self) {
        self.pending = None;
        if let Some(before) = self.outage.take() {
            let (collector, dropped) = (&self.endpoint, self.drops.count.get() - before);
            tracing::info!(%collector, dropped, "the collector accepts spans again");
        }
    }

    /// Logs a failure, if it is the first since the last success.
    fn fail(&mut self, reason: &str) {
        if self.outage.is_none() {
            self.outage = Some(self.drops.count.get());
            let collector = &self.endpoint;
            tracing::warn!(%collector, reason, "cannot export spans; the run goes on without");
        }
    }

    fn drop_request(&mut self, reason: &str) {
        let spans = self.pending.take().map_or(0, |request| request.spans);
        self.drops.add(spans, reason);
    }
}

#[cfg(test)]
mod tests;
