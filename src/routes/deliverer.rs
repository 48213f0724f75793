//! The deliverer: takes changes of alerts from the outbox, makes deliveries of them and sends these, on a thread of its
//! own. What it has decided is durable before it acts, so that a crash repeats at most what was under way.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use headwater_sinks::WriterContext;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::circuit::{Circuit, CircuitChange, backoff_ms};
use super::database::{OutboxPlace, Statement, StoreError};
use super::grouping::take_turn;
use super::http::{PostError, post};
use super::outbox::{
    BATCH, Delivery, Outbox, Writer, add_to_group, make_delivery, record_death, record_failure,
    record_removed_route, record_turn, remove_changes, remove_dead, remove_delivery, replace_content,
};
use super::payload::{Origin, Payload};
use super::{AlertChange, Route};
use crate::client::Client;
use crate::metrics::{DeliveryOutcome, Metrics};
use crate::wall::wall_ms;

/// The settings of a deliverer.
#[derive(Clone, Debug)]
pub struct DeliverySettings {
    /// The name of the pipeline.
    pub pipeline: String,
    /// The place of the outbox.
    pub place: OutboxPlace,
    /// The routes.
    pub routes: Vec<Route>,
}

/// A running deliverer. Dropping it stops it, after a short while for what is left.
pub struct Deliverer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The interval at which the outbox is read.
const POLL: Duration = Duration::from_millis(250);

/// The time to wait after an error of the database.
const RECONNECT: Duration = Duration::from_secs(1);

/// The most requests to a receiver at a time.
const REQUESTS: usize = 4;

/// The longest time to go on delivering after the end of the run.
const GRACE: Duration = Duration::from_secs(5);

/// The interval at which the waiting deliveries are counted.
const COUNT_EVERY: Duration = Duration::from_secs(2);

/// The time for which dead deliveries are kept, in milliseconds.
const KEEP_DEAD_MS: i64 = 30 * 86_400_000;

impl Deliverer {
    /// Starts the deliverer of this start. The outbox must exist.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        settings: DeliverySettings,
        context: &WriterContext,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Deliverer> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = Client::new().map_err(std::io::Error::other)?;
        let writer =
            Writer { ledger_id: context.ledger_id.0.clone(), generation: context.generation.0 as i64 };
        let (stop, stopped) = oneshot::channel();
        let deliveries = Deliveries::new(settings, writer, client, metrics);
        let thread = std::thread::Builder::new().name("deliverer".into()).spawn(move || {
            runtime.block_on(deliveries.run(stopped));
            // Look-ups of names that do not end must not hold up the end of the run.
            runtime.shutdown_background();
        })?;
        Ok(Deliverer { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Deliverer {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A panic of the thread has been logged; what it left waits in the outbox.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The state of a route's receiver.
#[derive(Default)]
struct Receiver {
    circuit: Circuit,
    /// The groups with a delivery that is under way, or whose outcome is not recorded.
    under_way: HashSet<String>,
}

/// A request that ended.
struct Finished {
    route: usize,
    delivery: Delivery,
    result: Result<(), PostError>,
}

struct Deliveries {
    settings: DeliverySettings,
    writer: Writer,
    client: Client,
    metrics: Arc<Metrics>,
    outbox: Option<Outbox>,
    receivers: Vec<Receiver>,
    requests: JoinSet<Finished>,
    /// The requests whose outcome is not recorded.
    finished: Vec<Finished>,
    counted: Option<Instant>,
    /// True if the database failed and this was logged.
    is_unavailable: bool,
}

impl Deliveries {
    fn new(settings: DeliverySettings, writer: Writer, client: Client, metrics: Arc<Metrics>) -> Deliveries {
        let receivers = settings.routes.iter().map(|_| Receiver::default()).collect();
        Deliveries {
            settings,
            writer,
            client,
            metrics,
            outbox: None,
            receivers,
            requests: JoinSet::new(),
            finished: Vec::new(),
            counted: None,
            is_unavailable: false,
        }
    }

    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let wait = match self.step().await {
                Ok(wait) => wait,
                Err(StoreError::Fenced) => {
                    tracing::warn!("a later start delivers alerts: this one ends its deliveries");
                    return;
                }
                Err(error) => self.disconnect(&error),
            };
            tokio::select! {
                _ = &mut stopped => break,
                () = self.next(wait) => {}
            }
        }
        if let Err(error) = self.finish().await {
            tracing::warn!(%error, "the deliveries that wait cannot be counted: the next start sends them");
        }
    }

    /// Forgets the session with the database, which returned an error. Returns the time to wait.
    fn disconnect(&mut self, error: &StoreError) -> Duration {
        if !std::mem::replace(&mut self.is_unavailable, true) {
            tracing::warn!(%error, "deliveries wait until the outbox can be used");
        }
        self.outbox = None;
        RECONNECT
    }

    /// Waits until a request ends, or for this time.
    async fn next(&mut self, wait: Duration) {
        tokio::select! {
            Some(finished) = self.requests.join_next(), if !self.requests.is_empty() => {
                self.finished.extend(finished.ok());
            }
            () = tokio::time::sleep(wait) => {}
        }
        while let Some(Ok(finished)) = self.requests.try_join_next() {
            self.finished.push(finished);
        }
    }

    /// Does everything that can be done now. Returns the time until there may be more to do.
    async fn step(&mut self) -> Result<Duration, StoreError> {
        self.connect().await?;
        self.record_finished().await?;
        let read = self.take_changes().await?;
        self.take_turns(false).await?;
        self.start_requests().await?;
        self.count().await?;
        Ok(if read == BATCH { Duration::ZERO } else { POLL })
    }

    fn outbox(&mut self) -> Result<&mut Outbox, StoreError> {
        let missing = || StoreError::Unavailable("its tables do not exist".to_owned());
        self.outbox.as_mut().ok_or_else(missing)
    }

    async fn write(&mut self, statements: Vec<Statement>) -> Result<(), StoreError> {
        let writer = self.writer.clone();
        self.outbox()?.write(&writer, statements).await
    }

    /// Connects to the outbox, unless it is connected.
    async fn connect(&mut self) -> Result<(), StoreError> {
        if self.outbox.is_some() {
            return Ok(());
        }
        self.outbox = Outbox::open(&self.settings.place).await?;
        let writer = self.writer.clone();
        self.outbox()?.take_over(&writer).await?;
        if std::mem::take(&mut self.is_unavailable) {
            tracing::info!("the outbox can be used again");
        }
        let now_ms = wall_ms();
        let mut statements = vec![remove_dead(now_ms - KEEP_DEAD_MS)];
        for waiting in self.outbox()?.waiting().await? {
            if self.settings.routes.iter().all(|route| route.name != waiting.route) {
                let (route, count) = (&waiting.route, waiting.count);
                tracing::warn!(route, count, "gave up the deliveries of a route that was removed");
                statements.push(record_removed_route(&waiting.route, now_ms));
            }
        }
        self.write(statements).await
    }

    /// Turns changes of alerts into deliveries, or adds them to groups. Returns the number of changes.
    async fn take_changes(&mut self) -> Result<usize, StoreError> {
        let changes = self.outbox()?.changes().await?;
        let now_ms = wall_ms();
        let mut statements = Vec::new();
        for (_, alert) in &changes {
            for route in &self.settings.routes {
                route_change(route, alert, now_ms, &mut statements);
            }
        }
        let seqs: Vec<_> = changes.iter().map(|(seq, _)| *seq).collect();
        statements.extend(remove_changes(&seqs));
        self.write(statements).await?;
        Ok(changes.len())
    }

    /// Makes the deliveries of groups that are due; with `all`, of all groups with changes.
    async fn take_turns(&mut self, all: bool) -> Result<(), StoreError> {
        for route in self.settings.routes.clone() {
            let now_ms = wall_ms();
            let outbox = self.outbox()?;
            let due = match all {
                true => outbox.changed_groups(&route.name).await?,
                false => outbox.due_groups(&route.name, now_ms).await?,
            };
            for (group_key, sent_ms) in due {
                let alerts = self.outbox()?.group_alerts(&route.name, &group_key).await?;
                let turn = take_turn(&route.grouping, route.filter.send_revoked, sent_ms, alerts, now_ms);
                self.write(record_turn(&route.name, &group_key, sent_ms, &turn)).await?;
            }
        }
        Ok(())
    }

    /// Starts as many requests as each receiver may get.
    async fn start_requests(&mut self) -> Result<(), StoreError> {
        for at in 0..self.settings.routes.len() {
            let (now_ms, route) = (wall_ms(), self.settings.routes[at].clone());
            let Receiver { circuit, under_way } = &self.receivers[at];
            let (free, busy) = (circuit.permits(now_ms, REQUESTS, under_way.len()), under_way.len());
            if free == 0 {
                continue;
            }
            let due = self.outbox()?.due(&route.name, now_ms, free + busy).await?;
            let under_way = &mut self.receivers[at].under_way;
            let new: Vec<_> = due
                .into_iter()
                .filter(|delivery| under_way.insert(delivery.group_key.clone()))
                .take(free)
                .collect();
            for delivery in new {
                self.start_request(at, &route, delivery);
            }
        }
        Ok(())
    }

    fn start_request(&mut self, at: usize, route: &Route, delivery: Delivery) {
        let origin = Origin { pipeline: &self.settings.pipeline, route: &route.name };
        let payload = route.target.payload(origin, &delivery.id, &delivery.content, wall_ms());
        let (client, target) = (self.client.clone(), route.target.clone());
        self.requests.spawn(async move {
            let result = match payload {
                Ok(Payload { headers, body }) => {
                    post(&client, &target.endpoint, target.http, headers, body).await
                }
                Err(reason) => Err(PostError::Rejected(reason)),
            };
            Finished { route: at, delivery, result }
        });
    }

    /// Records the outcomes of requests.
    async fn record_finished(&mut self) -> Result<(), StoreError> {
        if self.finished.is_empty() {
            return Ok(());
        }
        let (now_ms, finished) = (wall_ms(), std::mem::take(&mut self.finished));
        let recorded = self.record(&finished, now_ms).await;
        if let Err(error) = recorded {
            // Requests that succeeded must not be repeated if that can be avoided.
            self.finished = finished;
            return Err(error);
        }
        let mut dead: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for Finished { route: at, delivery, result } in finished {
            self.receivers[at].under_way.remove(&delivery.group_key);
            if let Some(error) = self.observe(at, &delivery, &result, now_ms) {
                dead.entry(at).or_default().push(error);
            }
        }
        for (at, errors) in dead {
            let (route, count, error) = (&self.settings.routes[at].name, errors.len(), &errors[0]);
            tracing::error!(
                route,
                count,
                error,
                "gave up deliveries; `headwater deliveries retry` sends them again"
            );
        }
        Ok(())
    }

    async fn record(&mut self, finished: &[Finished], now_ms: i64) -> Result<(), StoreError> {
        let mut statements = Vec::new();
        for Finished { route, delivery, result } in finished {
            let route = self.settings.routes[*route].clone();
            match result {
                Ok(()) => {
                    statements.push(remove_delivery(delivery.seq));
                    let earlier =
                        self.outbox()?.earlier(&route.name, &delivery.group_key, delivery.seq).await?;
                    statements.extend(supersede(earlier, &delivery.content.alerts));
                }
                Err(PostError::Failed(error, wait_ms)) if !is_given_up(&route, delivery, now_ms) => {
                    let backoff_ms = backoff_ms(&delivery.id, delivery.attempts + 1);
                    let next_ms = now_ms + backoff_ms.max(wait_ms.unwrap_or(0));
                    statements.push(record_failure(delivery, error, next_ms, now_ms));
                }
                Err(PostError::Failed(error, _) | PostError::Rejected(error)) => {
                    statements.push(record_death(delivery, error, now_ms));
                }
            }
        }
        self.write(statements).await
    }

    /// Updates the metrics, the log and the circuit after a request. Returns the error of a delivery that is dead now.
    fn observe(
        &mut self,
        at: usize,
        delivery: &Delivery,
        result: &Result<(), PostError>,
        now_ms: i64,
    ) -> Option<String> {
        let Route { name, .. } = &self.settings.routes[at];
        let circuit = &mut self.receivers[at].circuit;
        let (outcome, change) = match result {
            Ok(()) => (DeliveryOutcome::Delivered, circuit.succeeded()),
            Err(PostError::Failed(..)) => (DeliveryOutcome::Failed, circuit.failed(now_ms)),
            Err(PostError::Rejected(_)) => (DeliveryOutcome::Rejected, circuit.succeeded()),
        };
        self.metrics.delivery(name, outcome);
        if change == Some(CircuitChange::Closed) {
            tracing::info!(route = name, "the receiver answers again");
        }
        let (Err(PostError::Failed(error, _)) | Err(PostError::Rejected(error))) = result else {
            return None;
        };
        tracing::debug!(route = name, delivery = delivery.id, error, "a delivery failed");
        if change == Some(CircuitChange::Opened) {
            tracing::warn!(route = name, error, "the receiver keeps failing: it gets one request at a time");
        }
        let is_dead =
            outcome == DeliveryOutcome::Rejected || is_given_up(&self.settings.routes[at], delivery, now_ms);
        if is_dead {
            self.metrics.delivery(name, DeliveryOutcome::Dead);
        }
        is_dead.then(|| error.clone())
    }

    /// Counts the deliveries that wait, now and then.
    async fn count(&mut self) -> Result<(), StoreError> {
        if self.counted.is_some_and(|counted| counted.elapsed() < COUNT_EVERY) {
            return Ok(());
        }
        self.counted = Some(Instant::now());
        let (waiting, now_ms) = (self.outbox()?.waiting().await?, wall_ms());
        for Route { name, filter, .. } in &self.settings.routes {
            self.metrics.route_errors(name, filter.errors());
            let found = waiting.iter().find(|waiting| waiting.route == *name);
            let age_ms = found.map_or(0, |found| (now_ms - found.oldest_ms).max(0));
            self.metrics.deliveries_waiting(name, found.map_or(0, |found| found.count), age_ms);
        }
        Ok(())
    }

    /// Goes on for a short while after the end of the run, and reports what is left.
    async fn finish(&mut self) -> Result<(), StoreError> {
        let deadline = Instant::now() + GRACE;
        let going_on = async {
            self.connect().await?;
            while self.take_changes().await? > 0 {}
            self.take_turns(true).await?;
            loop {
                self.record_finished().await?;
                self.start_requests().await?;
                if self.requests.is_empty() && !self.has_due_before(deadline).await? {
                    return Ok(());
                }
                self.next(POLL).await;
            }
        };
        let _: Result<Result<(), StoreError>, _> = tokio::time::timeout_at(deadline.into(), going_on).await;
        // Requests without an answer are repeated by the next start.
        self.requests.shutdown().await;
        self.connect().await?;
        self.record_finished().await?;
        for waiting in self.outbox()?.waiting().await? {
            let (route, count) = (waiting.route, waiting.count);
            tracing::warn!(route, count, "deliveries are waiting: the next start sends them");
        }
        Ok(())
    }

    /// Returns true if a delivery will be due before a time, to a receiver that answers.
    async fn has_due_before(&mut self, deadline: Instant) -> Result<bool, StoreError> {
        let left = deadline.saturating_duration_since(Instant::now()).as_millis() as i64;
        let deadline_ms = wall_ms() + left;
        for at in 0..self.settings.routes.len() {
            let name = self.settings.routes[at].name.clone();
            let is_open = self.receivers[at].circuit.permits(wall_ms(), 1, 0) == 0;
            if !is_open && !self.outbox()?.due(&name, deadline_ms, 1).await?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Adds what a route makes of a change.
fn route_change(route: &Route, alert: &AlertChange, now_ms: i64, statements: &mut Vec<Statement>) {
    let Route { name, filter, grouping, target, .. } = route;
    if !filter.accepts(alert, target.kind.keeps_state()) {
        return;
    }
    let key = grouping.key(alert);
    if grouping.is_stateful() {
        statements.extend(add_to_group(name, &key, alert, grouping.delays_ms(), now_ms));
    } else if alert.is_raised() || filter.send_revoked {
        let active = u64::from(alert.is_raised());
        let content = grouping.content(vec![alert.clone()], active, false, now_ms);
        statements.push(make_delivery(name, &key, &content));
    }
}

fn is_given_up(route: &Route, delivery: &Delivery, now_ms: i64) -> bool {
    now_ms - delivery.created_ms >= route.give_up_after_ms
}

/// Removes changes from earlier deliveries of a group, dead ones, that a later delivery has brought: sent afterwards, they
/// would open again what was resolved.
fn supersede(earlier: Vec<(i64, super::content::Content)>, later: &[AlertChange]) -> Vec<Statement> {
    let mut statements = Vec::new();
    for (seq, mut content) in earlier {
        match content.remove_superseded(later) {
            true if content.alerts.is_empty() => statements.push(remove_delivery(seq)),
            true => statements.push(replace_content(seq, &content)),
            false => {}
        }
    }
    statements
}
