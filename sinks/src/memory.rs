//! A sink in memory, for tests and for programs that read results directly. Faults can be injected into it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use headwater_dataflows::Epoch;

use crate::Changes;
use crate::contract::{
    CommitError, CommitPermit, Generation, LedgerId, OpenError, Progress, Sink, StageError, WriterContext,
};

/// A fault to inject into a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The commit fails and returns [`CommitError::Failed`].
    Failed,
    /// The commit succeeds but returns [`CommitError::Indeterminate`].
    Indeterminate,
    /// The commit fails and returns [`CommitError::Fenced`].
    Fenced,
}

/// The contents of a [`MemorySink`], shared with tests that inspect it or inject faults.
#[derive(Clone, Default)]
pub struct Memory(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    committed: BTreeMap<Epoch, Vec<Changes>>,
    progress: Option<Progress>,
    /// The last start that opened the sink.
    context: Option<(LedgerId, Generation)>,
    faults: VecDeque<Fault>,
    stalled: bool,
    commits: u64,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().expect("no holder of the lock panics")
    }

    /// Returns a sink that writes here.
    pub fn sink(&self, name: &str) -> MemorySink {
        MemorySink { name: name.to_owned(), memory: self.clone(), context: None, staged: BTreeMap::new() }
    }

    /// Returns all committed changes, by epoch and in the order of staging.
    pub fn committed(&self) -> Vec<(Epoch, Changes)> {
        let state = self.state();
        state
            .committed
            .iter()
            .flat_map(|(&epoch, all)| all.iter().map(move |one| (epoch, one.clone())))
            .collect()
    }

    /// Returns the last committed progress.
    pub fn progress(&self) -> Option<Progress> {
        self.state().progress.clone()
    }

    /// Returns the number of commits.
    pub fn commits(&self) -> u64 {
        self.state().commits
    }

    /// Injects a fault into the next commit. Several faults apply to one commit each, in order.
    pub fn fail_next(&self, fault: Fault) {
        self.state().faults.push_back(fault);
    }

    /// Blocks commits if `stalled` is true; otherwise unblocks them.
    pub fn stall(&self, stalled: bool) {
        self.state().stalled = stalled;
        self.0.1.notify_all();
    }
}

/// A sink that writes to a [`Memory`].
pub struct MemorySink {
    name: String,
    memory: Memory,
    context: Option<WriterContext>,
    staged: BTreeMap<Epoch, Vec<Changes>>,
}

impl Sink for MemorySink {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&mut self, context: &WriterContext) -> Result<Vec<Progress>, OpenError> {
        let mut state = self.memory.state();
        let adopted = context.adopt.map(|through| {
            let WriterContext { ledger_id, generation, shards, .. } = context.clone();
            Progress { ledger_id, generation, shards, through }
        });
        let progress: Vec<_> = adopted.or_else(|| state.progress.clone()).into_iter().collect();
        if let Some(reason) = context.objection_to(&self.name, &progress, state.context.as_ref()) {
            return Err(OpenError::Refused { sink: self.name.clone(), reason });
        }
        state.progress = progress.first().cloned();
        state.context = Some((context.ledger_id.clone(), context.generation));
        drop(state);
        self.context = Some(context.clone());
        Ok(progress)
    }

    fn peek_progress(&mut self, _: &str) -> Result<Vec<Progress>, OpenError> {
        Ok(self.memory.progress().into_iter().collect())
    }

    fn stage(&mut self, epoch: Epoch, changes: Changes) -> Result<(), StageError> {
        self.staged.entry(epoch).or_default().push(changes);
        Ok(())
    }

    fn commit(&mut self, permit: CommitPermit) -> Result<(), CommitError> {
        let (sink, through) = (self.name.clone(), permit.through());
        let (state, unblocked) = &*self.memory.0;
        let lock = "no holder of the lock panics";
        let mut state = unblocked.wait_while(state.lock().expect(lock), |state| state.stalled).expect(lock);
        let reason = || "injected by the test".to_owned();
        let fault = state.faults.pop_front();
        match fault {
            Some(Fault::Failed) => return Err(CommitError::Failed { sink, through, reason: reason() }),
            Some(Fault::Fenced) => return Err(CommitError::Fenced { sink, reason: reason() }),
            Some(Fault::Indeterminate) | None => {}
        }
        let Some(context) = &self.context else {
            return Err(CommitError::Failed { sink, through, reason: "the sink is not open".into() });
        };
        if state.context != Some((context.ledger_id.clone(), context.generation)) {
            return Err(CommitError::Fenced { sink, reason: "a later start has taken over".into() });
        }
        let later = self.staged.split_off(&through.next());
        for (epoch, mut changes) in std::mem::replace(&mut self.staged, later) {
            state.committed.entry(epoch).or_default().append(&mut changes);
        }
        state.progress = Some(Progress {
            ledger_id: context.ledger_id.clone(),
            generation: context.generation,
            shards: context.shards,
            through,
        });
        state.commits += 1;
        match fault {
            Some(_) => Err(CommitError::Indeterminate { sink, through, reason: reason() }),
            None => Ok(()),
        }
    }
}
