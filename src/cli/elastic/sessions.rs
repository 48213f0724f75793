//! The connections of the first process to the other members. There is one to each member that is listed or runs; one that is
//! lost is made again as soon as the member answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::LOG_EVERY;
use super::wire::{Connection, FromLeader, FromMember, Received, Shared, greet};
use crate::cli::hosts::Placement;

/// The interval between two attempts to connect to a member.
const RETRY: Duration = Duration::from_millis(200);

/// A change of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Its engine has ended, and can be started again.
    Stopped,
    /// It was asked to stop.
    Leaving,
    /// Its engine has ended with the input.
    Done,
    /// Its process is lost.
    Lost,
}

/// The connections by the addresses of the members.
pub struct Sessions {
    shared: Shared,
    members: BTreeMap<String, Session>,
    /// The answers to attempts to connect.
    answers: Receiver<(String, Result<Connection<FromMember>, String>)>,
    answer: Sender<(String, Result<Connection<FromMember>, String>)>,
}

#[derive(Default)]
struct Session {
    connection: Option<Connection<FromMember>>,
    /// True from the start of its engine to its end.
    runs: bool,
    /// True if it was asked to stop.
    leaves: bool,
    /// The time of the last attempt to connect, and whether it goes on.
    tried: Option<Instant>,
    is_trying: bool,
    logged: Option<Instant>,
}

impl Sessions {
    /// Returns no connections, to be made for this pipeline with its secret.
    pub fn new(shared: &Shared) -> Sessions {
        let (answer, answers) = channel();
        Sessions { shared: shared.clone(), members: BTreeMap::new(), answers, answer }
    }

    /// Makes connections to these members, and keeps those that there are.
    pub fn follow<'a>(&mut self, listed: impl Iterator<Item = &'a String>) {
        let listed: BTreeSet<_> = listed.collect();
        self.members.retain(|member, session| session.connection.is_some() || listed.contains(member));
        for member in listed {
            self.members.entry(member.clone()).or_default();
        }
    }

    /// Connects to members that have no connection, and returns what has changed. `has_run` says that this process has run
    /// the pipeline.
    pub fn step(&mut self, has_run: bool) -> Vec<(String, Event)> {
        while let Ok((member, answer)) = self.answers.try_recv() {
            let Some(session) = self.members.get_mut(&member) else { continue };
            session.is_trying = false;
            match answer {
                Ok(connection) => {
                    tracing::info!(member, "a member of the cluster is ready");
                    *session = Session { connection: Some(connection), ..Session::default() };
                }
                Err(reason) if session.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) => {
                    session.logged = Some(Instant::now());
                    tracing::warn!(
                        member,
                        reason,
                        "a member of the cluster does not answer; it takes part once it does"
                    );
                }
                Err(_) => {}
            }
        }
        let mut events = Vec::new();
        for (member, session) in &mut self.members {
            while let Some(event) = session.receive() {
                events.push((member.clone(), event));
            }
            if session.connection.is_none()
                && !session.is_trying
                && session.tried.is_none_or(|at| at.elapsed() >= RETRY)
            {
                (session.is_trying, session.tried) = (true, Some(Instant::now()));
                let (member, shared, answer) = (member.clone(), self.shared.clone(), self.answer.clone());
                // The receiver is gone once this process leads no more.
                std::thread::spawn(move || {
                    drop(answer.send((member.clone(), greet(&member, &shared, has_run))))
                });
            }
        }
        events
    }

    /// Returns the members that answer and do not leave.
    pub fn present(&self) -> BTreeSet<String> {
        let present =
            self.members.iter().filter(|(_, session)| session.connection.is_some() && !session.leaves);
        present.map(|(member, _)| member.clone()).collect()
    }

    /// Returns true if a member answers and its engine does not run.
    pub fn is_ready(&self, member: &str) -> bool {
        let session = self.members.get(member);
        session.is_some_and(|session| session.connection.is_some() && !session.runs && !session.leaves)
    }

    /// Starts the engines of these members, except of the first, which is this process.
    pub fn start(&mut self, members: &[String], workers: usize) {
        for (process, member) in members.iter().enumerate().skip(1) {
            if let Some(session) = self.members.get_mut(member) {
                session.runs = true;
                session.send(&FromLeader::Start(Placement { process, workers, members: members.to_vec() }));
            }
        }
    }

    /// Stops the engines of all members.
    pub fn stop(&self) {
        self.members
            .values()
            .filter(|session| session.runs)
            .for_each(|session| session.send(&FromLeader::Stop));
    }

    /// Says to all members that the input has ended.
    pub fn done(&self) {
        self.members.values().for_each(|session| session.send(&FromLeader::Done));
    }

    /// Ends the processes that are connected and are not among these members.
    pub fn dismiss(&mut self, members: &[String]) {
        self.members.retain(|member, session| {
            if !members.contains(member) {
                session.send(&FromLeader::Dismiss);
            }
            members.contains(member)
        });
    }
}

impl Session {
    fn send(&self, message: &FromLeader) {
        if let Some(connection) = &self.connection {
            connection.send(message);
        }
    }

    /// Returns the next change, if there is one.
    fn receive(&mut self) -> Option<Event> {
        let event = match self.connection.as_ref()?.receive() {
            Received::Nothing => return None,
            Received::Message(FromMember::Ready) => {
                self.runs = false;
                return Some(Event::Stopped);
            }
            Received::Message(FromMember::Leaving) => {
                self.leaves = true;
                return Some(Event::Leaving);
            }
            Received::Message(FromMember::Done) => Event::Done,
            Received::Message(FromMember::Refused(_) | FromMember::Challenge { .. }) | Received::Closed => {
                Event::Lost
            }
        };
        let has_said = self.leaves;
        (self.connection, self.runs) = (None, false);
        Some(if has_said { Event::Done } else { event })
    }
}
