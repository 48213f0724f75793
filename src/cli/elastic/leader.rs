//! The first process of a cluster: decides which members run, and runs the pipeline with them until that changes.
//!
//! ```text
//!   list ─▶ who is listed and answers ─ for a while ─▶ stop all at a checkpoint ─▶ gather ─▶ start all again
//! ```

use std::collections::BTreeSet;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::members::Listed;
use super::membership::Membership;
use super::sessions::{Event, Sessions};
use super::wire::{Connection, Door, FromLeader};
use super::{Agent, Engine, POLL_INTERVAL};
use crate::cli::{DONE, FAILED, supervise};

/// The time for which a start waits for a member that ran before, or that is listed at the first start.
const ABSENT_AFTER: Duration = Duration::from_secs(5);

/// The time in which the other processes say why a run has ended.
const REASON_WITHIN: Duration = Duration::from_millis(300);

/// The end of the time in which a process leads.
pub enum Led {
    /// The process ends with this code.
    Exit(u8),
    /// Another process has run the pipeline and leads, over this connection.
    Yield(Connection<FromLeader>),
}

/// The result of waiting for members.
enum Gathered {
    /// These members run, this process first.
    Members(Vec<String>),
    /// The process does not lead any more.
    End(Led),
}

/// The first process.
pub struct Leader<'a> {
    agent: &'a mut Agent,
    own: String,
    sessions: Sessions,
    membership: Membership,
    began: Instant,
    /// The members that a start waits for; None at the first start, for all that are listed.
    awaited: Option<BTreeSet<String>>,
}

/// The reason why a run is stopped, and another one follows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// An engine of another member has failed.
    Failure,
    /// The members have changed, or one of them is lost.
    Change,
}

/// The end of a run.
struct End {
    code: u8,
    /// The members to be waited for, if it is to be started again.
    again: Option<BTreeSet<String>>,
    /// The time before that.
    pause: Duration,
}

impl Leader<'_> {
    /// Returns the first process, with this address.
    pub fn new(agent: &mut Agent, own: String) -> Leader<'_> {
        let (sessions, membership) = (Sessions::new(&agent.shared), Membership::new(agent.args.settle));
        Leader { agent, own, sessions, membership, began: Instant::now(), awaited: None }
    }

    /// Leads the cluster until the process ends, or another one leads.
    ///
    /// # Errors
    /// If the engine cannot be started.
    pub fn lead(mut self, mut door: Option<Door>) -> anyhow::Result<Led> {
        let mut pause = Duration::ZERO;
        loop {
            let members = match self.gather(door.take(), pause) {
                Gathered::Members(members) => members,
                Gathered::End(led) => return Ok(led),
            };
            self.sessions.start(&members, self.agent.args.workers);
            let End { code, again, pause: next } = self.attend(&members)?;
            let Some(awaited) = again else { return Ok(Led::Exit(code)) };
            (self.awaited, pause) = (Some(awaited), next);
        }
    }

    /// Waits for the members of the next run.
    fn gather(&mut self, mut door: Option<Door>, pause: Duration) -> Gathered {
        let since = Instant::now();
        loop {
            if self.agent.requests.recv_timeout(POLL_INTERVAL).is_ok() {
                tracing::info!("stopped while waiting for the members of the cluster");
                return Gathered::End(Led::Exit(DONE));
            }
            let mut objection = None;
            if self.awaited.is_none() {
                objection = self.agent.open_door(&self.own, &mut door);
                let accepted = door.as_mut().and_then(|door| door.accept(&self.agent.shared));
                if let Some((connection, true)) = accepted {
                    return Gathered::End(Led::Yield(connection));
                }
            }
            let listed = self.agent.list.newest();
            if self.agent.own.is_removed_from(&listed.members) {
                self.dismiss(&listed);
                tracing::info!(
                    process = self.own,
                    "this process is no longer a member of the cluster: ending"
                );
                return Gathered::End(Led::Exit(DONE));
            }
            self.follow(&listed);
            self.events(since.elapsed());
            self.dismiss(&listed);
            let missing = self.missing(&listed);
            let is_settled = self.awaited.is_some()
                || self.agent.args.peers.is_none()
                || listed.since.elapsed() >= self.agent.args.settle;
            if since.elapsed() >= pause
                && objection.is_none()
                && ((missing.is_empty() && is_settled) || since.elapsed() >= pause + ABSENT_AFTER)
            {
                if !missing.is_empty() {
                    tracing::warn!(
                        missing = missing.join(", "),
                        "members of the cluster do not answer: going on without them; each takes part once it answers"
                    );
                }
                return Gathered::Members(self.able(&listed));
            }
            self.agent.waits_for(since, || match (objection, missing.is_empty()) {
                (Some(objection), _) => objection,
                (None, true) => "waiting before the next start".to_owned(),
                (None, false) => {
                    format!("waiting for members of the cluster that do not answer: {}", missing.join(", "))
                }
            });
        }
    }

    /// Returns the members that the start waits for.
    fn missing(&self, listed: &Listed) -> Vec<String> {
        let awaited = |member: &&String| match &self.awaited {
            Some(awaited) => awaited.contains(*member),
            None => true,
        };
        let now = self.began.elapsed();
        let missing = listed.members.iter().filter(awaited).filter(|&member| {
            *member != self.own && !self.sessions.is_ready(member) && !self.membership.rests(now, member)
        });
        missing.cloned().collect()
    }

    /// Ends the processes that the host file does not have any more. Kubernetes itself ends pods, and DNS may lack one that
    /// runs.
    fn dismiss(&mut self, listed: &Listed) {
        if self.agent.args.hostfile.is_some() && self.agent.args.peers.is_none() {
            self.sessions.dismiss(&listed.members);
        }
    }

    fn follow(&mut self, listed: &Listed) {
        let own = &self.own;
        self.sessions.follow(listed.members.iter().filter(|member| *member != own));
    }

    /// Returns the members that can run.
    fn able(&self, listed: &Listed) -> Vec<String> {
        let max = headwater_dataflows::SHARDS as usize / self.agent.args.workers;
        let present = self.sessions.present();
        self.membership.able(self.began.elapsed(), &self.own, &listed.members, &present, max)
    }

    /// Returns what has changed among the members. Losses count for a run that has lasted for `ran`.
    fn events(&mut self, ran: Duration) -> Vec<(String, Event)> {
        let events = self.sessions.step(self.awaited.is_some());
        for (member, event) in &events {
            if *event == Event::Lost {
                tracing::warn!(member, "lost a member of the cluster");
                self.membership.lost(self.began.elapsed(), member, ran);
            }
        }
        events
    }

    /// Runs the pipeline with these members, until that ends or they change.
    fn attend(&mut self, members: &[String]) -> anyhow::Result<End> {
        // From now on, a connection of this process to a member says that it has run the pipeline.
        self.awaited.get_or_insert_default();
        let (mut engine, started) = (self.agent.start(0, members)?, Instant::now());
        let mut awaited: BTreeSet<String> = members.iter().cloned().collect();
        let (mut reason, mut is_leaving, mut ended) = (None, false, None);
        loop {
            if self.agent.requests.recv_timeout(POLL_INTERVAL).is_ok() {
                if !is_leaving {
                    tracing::info!("stopping; the other members of the cluster wait for this process");
                    self.sessions.stop();
                }
                engine.stop(is_leaving)?;
                is_leaving = true;
            }
            let listed = self.agent.list.newest();
            self.follow(&listed);
            for (member, event) in self.events(started.elapsed()) {
                if event == Event::Leaving {
                    awaited.remove(&member);
                }
                if members.contains(&member) && event != Event::Done {
                    if reason.is_none() {
                        tracing::info!(
                            member,
                            ?event,
                            "a member of the cluster has stopped: stopping the others"
                        );
                    }
                    let is_failure = event == Event::Stopped;
                    reason = reason.max(Some(if is_failure { Reason::Failure } else { Reason::Change }));
                }
            }
            let able = self.able(&listed);
            let now = self.began.elapsed();
            if reason.is_none() && !is_leaving && self.membership.has_changed(now, members, &able) {
                log_change(members, &able);
                reason = Some(Reason::Change);
            }
            if reason.is_some() && !engine.is_stopping() {
                self.sessions.stop();
                engine.rescale();
            }
            if let Some(status) = engine.ended()? {
                let (status, since) = *ended.get_or_insert((status, Instant::now()));
                let code = supervise::code(status);
                let is_known = is_leaving || reason.is_some() || !matches!(code, DONE | FAILED);
                if !is_known && since.elapsed() < REASON_WITHIN {
                    continue;
                }
                return Ok(self.end(&engine, status, reason.filter(|_| !is_leaving), awaited, is_leaving));
            }
        }
    }

    /// Decides how it goes on after the end of an engine.
    fn end(
        &mut self,
        engine: &Engine,
        status: ExitStatus,
        reason: Option<Reason>,
        awaited: BTreeSet<String>,
        is_leaving: bool,
    ) -> End {
        let code = supervise::code(status);
        let (again, pause) = match (code, reason) {
            _ if is_leaving => (None, Duration::ZERO),
            (DONE, Some(_)) | (FAILED, Some(Reason::Change)) => (Some(awaited), Duration::ZERO),
            (FAILED, _) if self.agent.args.restart => {
                (Some(awaited), self.agent.program.failed(&engine.run, status))
            }
            _ => (None, Duration::ZERO),
        };
        if code == DONE && again.is_none() && !is_leaving {
            self.sessions.done();
        }
        End { code, again, pause }
    }
}

/// Logs that the cluster changes.
fn log_change(before: &[String], after: &[String]) {
    let only_in = |list: &[String], other: &[String]| {
        let only: Vec<_> =
            list.iter().filter(|&member| !other.contains(member)).map(String::as_str).collect();
        only.join(", ")
    };
    let (added, removed) = (only_in(after, before), only_in(before, after));
    let (from, to) = (before.len(), after.len());
    tracing::info!(
        from,
        to,
        added,
        removed,
        "the members of the cluster have changed: going on with them after a checkpoint"
    );
}
