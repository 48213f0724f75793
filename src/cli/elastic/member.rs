//! A process of a cluster that does not decide about its members: waits for the first one, and runs the pipeline as it says.

use std::time::{Duration, Instant};

use super::wire::{Connection, Door, FromLeader, FromMember, Received};
use super::{Agent, POLL_INTERVAL};
use crate::cli::hosts::Placement;
use crate::cli::{DONE, FAILED, supervise};

/// The time in which the first process answers to a member that leaves, and says why a run has ended.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The end of the time in which a process waits.
pub enum Waited {
    /// The process decides about the members, and may keep this port.
    Lead(String, Option<Door>),
    /// The process runs the pipeline in this place.
    Start(Placement, Connection<FromLeader>),
    /// The process ends with this code.
    Exit(u8),
}

/// The end of a run.
pub enum Ran {
    /// The process waits for the next run, over this connection if the first process is not lost.
    Again(Option<Connection<FromLeader>>),
    /// The process ends with this code.
    Exit(u8),
}

impl Agent {
    /// Waits until the first process starts a run, or this one is the first.
    pub fn wait(&mut self, mut leader: Option<Connection<FromLeader>>) -> Waited {
        let (since, mut door) = (Instant::now(), None);
        if let Some(leader) = &leader {
            leader.send(&FromMember::Ready);
        }
        loop {
            if self.requests.recv_timeout(POLL_INTERVAL).is_ok() {
                if let Some(leader) = &leader {
                    leader.send(&FromMember::Leaving);
                }
                tracing::info!("stopped while waiting for the first process of the cluster");
                return Waited::Exit(DONE);
            }
            let listed = self.list.newest();
            self.own.remember(&listed.members);
            let (own, mut objection) = (self.own.address(&listed.members), None);
            if let Some(own) = &own {
                objection = self.open_door(own, &mut door);
                if leader.is_none() && self.own.leads(&listed.members) {
                    return Waited::Lead(own.clone(), door);
                }
            }
            if let Some((connection, _)) = door.as_mut().and_then(|door| door.accept(&self.shared)) {
                connection.send(&FromMember::Ready);
                tracing::info!("the first process of the cluster has connected");
                leader = Some(connection);
            }
            match leader.as_ref().map(Connection::receive) {
                Some(Received::Message(FromLeader::Start(placement))) => match placement.checked() {
                    Ok(placement) if own.as_ref() == placement.members.get(placement.process) => {
                        return leader
                            .map_or(Waited::Exit(FAILED), |leader| Waited::Start(placement, leader));
                    }
                    Ok(placement) => {
                        tracing::error!(
                            ?placement,
                            ?own,
                            "the first process of the cluster takes this one for another"
                        );
                        leader = None;
                    }
                    Err(reason) => {
                        tracing::error!(reason, "the first process of the cluster has sent an invalid start");
                        leader = None;
                    }
                },
                Some(Received::Message(FromLeader::Dismiss)) => return Waited::Exit(self.dismissed()),
                Some(Received::Message(FromLeader::Done)) => {
                    tracing::info!("the input has ended: ending");
                    return Waited::Exit(DONE);
                }
                Some(Received::Closed) => leader = None,
                Some(Received::Message(_) | Received::Nothing) | None => {}
            }
            let (members, has_leader) = (&listed.members, leader.is_some());
            self.waits_for(since, || match (members.first(), &own) {
                _ if objection.is_some() => objection.unwrap_or_default(),
                (None, _) => "waiting for a valid list of the cluster's members".to_owned(),
                (_, None) => format!("waiting for this process in the list of {} members", members.len()),
                (Some(first), Some(own)) if !members.contains(own) => {
                    format!("waiting for this process, {own}, in the list of members and for the first one, {first}")
                }
                (Some(first), _) if has_leader => format!("waiting for {first} to start the next run"),
                (Some(first), _) => format!("waiting for {first}, the first process of the cluster, to connect"),
            });
        }
    }

    fn dismissed(&self) -> u8 {
        tracing::info!("this process is no longer a member of the cluster: ending");
        DONE
    }

    /// Runs the pipeline in a place, until that ends or the first process stops it.
    ///
    /// # Errors
    /// If the engine cannot be started.
    pub fn serve(&mut self, placement: &Placement, leader: Connection<FromLeader>) -> anyhow::Result<Ran> {
        let Placement { process, workers, members } = placement;
        if *workers != self.args.workers {
            tracing::warn!(
                own = self.args.workers,
                of_cluster = workers,
                "using the first process's number of workers"
            );
            self.args.workers = *workers;
        }
        let mut engine = self.start(*process, members)?;
        let mut leader = Some(leader);
        let (mut is_announced, mut is_dismissed, mut is_over) = (false, false, false);
        let (mut leaving, mut ended) = (None::<Instant>, None);
        loop {
            if self.requests.recv_timeout(POLL_INTERVAL).is_ok() {
                match leaving {
                    None => leader.iter().for_each(|leader| leader.send(&FromMember::Leaving)),
                    Some(_) => engine.stop(true)?,
                }
                leaving.get_or_insert_with(Instant::now);
            }
            loop {
                match leader.as_ref().map(Connection::receive) {
                    Some(Received::Message(FromLeader::Dismiss)) => {
                        (is_announced, is_dismissed) = (true, true)
                    }
                    Some(Received::Message(FromLeader::Done)) => is_over = true,
                    Some(Received::Message(_)) => is_announced = true,
                    Some(Received::Closed) => (leader, is_announced) = (None, is_announced || !is_over),
                    Some(Received::Nothing) | None => break,
                }
            }
            // The first process tells the others before any engine stops, else they would take it for the end of the input.
            let has_waited = leaving.is_some_and(|at| at.elapsed() >= ANSWER_WITHIN);
            if (is_announced || has_waited) && !engine.is_stopping() {
                engine.stop(false)?;
            }
            let Some(status) = engine.ended()? else { continue };
            let (status, at) = *ended.get_or_insert((status, Instant::now()));
            let code = supervise::code(status);
            if leaving.is_some() {
                return Ok(Ran::Exit(code));
            }
            if is_dismissed && code == DONE {
                return Ok(Ran::Exit(self.dismissed()));
            }
            return Ok(match code {
                DONE | FAILED if is_announced => Ran::Again(leader),
                DONE if !is_over && at.elapsed() < ANSWER_WITHIN => continue,
                DONE => {
                    leader.iter().for_each(|leader| leader.send(&FromMember::Done));
                    Ran::Exit(DONE)
                }
                FAILED if self.args.restart => {
                    // The first process waits before it starts the next run.
                    let _ = self.program.failed(&engine.run, status);
                    Ran::Again(leader)
                }
                code => Ran::Exit(code),
            });
        }
    }
}
