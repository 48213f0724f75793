//! The lists that a start begins with: the contents in force at the point to resume from, those that the replay needs, and
//! those that the sources have now.
//!
//! ```text
//!   manifest: contents in force ─▶ replayed epochs: changes ─▶ what the sources have now, if new: one more epoch to replay
//! ```
//!
//! The last step is why the first record of a run is judged by what the lists are at its start: the epoch of the change has
//! no records, and is in the ledger before the run begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use headwater_dataflows::{Epoch, Since};
use headwater_sinks::{LedgerId, crash};

use crate::coordination::ingest::TimeRules;
use crate::coordination::{Change, EpochRecord, InForce, ListVersion, Versions};
use crate::ledger::Ledger;
use crate::lists::{Lists, Table, Version};
use crate::runtime::checkpoint::contents;
use crate::runtime::checkpoint::writer::WriterId;
use crate::runtime::failure::RunError;
use crate::runtime::lists::{ListReaders, ReadContents};
use crate::runtime::recovery::origin::{Checkpoints, Origin};
use crate::wall::wall_ms;

/// The lists of a start.
pub struct StartLists<'a> {
    /// The lists.
    pub lists: &'a Lists,
    /// The readers of their sources, in the process that reads them.
    pub readers: Option<&'a ListReaders>,
}

/// Contents that the replay needs. They are at hand as long as this exists.
#[derive(Default)]
pub struct Preloaded(Vec<Arc<Table>>);

impl Preloaded {
    /// Forgets the contents.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Removes lists from what is in force that the configuration does not have any more.
pub fn retain_known(in_force: Versions, lists: &Lists) -> Versions {
    let known = in_force.as_slice().iter().cloned().map(|mut in_force: InForce| {
        in_force.change.lists.retain(|list| lists.get(&list.name).is_some());
        in_force
    });
    Versions::of(known.filter(|in_force| !in_force.change.is_empty()).collect())
}

/// Returns the contents that the replay of these epochs lets come into force.
pub fn replayed(replay: &[EpochRecord]) -> Vec<ListVersion> {
    replay.iter().flat_map(|record| record.change.lists.iter().cloned()).collect()
}

/// Returns the contents that are in force after the replay.
pub fn newest(in_force: &Versions, replayed: &[ListVersion]) -> Vec<ListVersion> {
    let of_start = in_force.as_slice().iter().flat_map(|in_force| &in_force.change.lists);
    let by_name: BTreeMap<_, _> = of_start.chain(replayed).map(|list| (&list.name, list)).collect();
    by_name.into_values().cloned().collect()
}

/// Lets the contents come into force with which a run begins, and reads those that its replay needs.
///
/// # Errors
/// If contents are missing or damaged.
pub fn begin(
    lists: &Lists,
    in_force: &Versions,
    replayed: &[ListVersion],
    mut stored: Option<(&mut Checkpoints, &LedgerId)>,
) -> Result<Preloaded, RunError> {
    let mut tables: BTreeMap<(&str, [u8; 32]), Arc<Table>> = BTreeMap::new();
    let of_start = in_force.as_slice().iter().flat_map(|in_force| &in_force.change.lists);
    for ListVersion { name, hash, .. } in of_start.chain(replayed) {
        let Some(list) = lists.get(name) else { continue };
        if tables.contains_key(&(name, *hash)) {
            continue;
        }
        let table = match (list.at_hand(*hash), &mut stored) {
            (Some(table), _) => table,
            (None, Some((Checkpoints { store, .. }, ledger_id))) => {
                let bytes = contents::get(&mut **store, ledger_id, name, *hash)?;
                let damaged = |damage: crate::lists::Malformed| RunError::ListContents {
                    list: name.clone(),
                    hash: crate::lists::hex(hash),
                    damage: damage.to_string(),
                };
                Arc::new(Table::decode(list.schema(), &bytes).map_err(damaged)?)
            }
            (None, None) => unreachable!("without a state store, contents have just been read"),
        };
        tables.insert((name, *hash), table);
    }
    for list in lists.iter() {
        let of_list = in_force.as_slice().iter().flat_map(|InForce { since, change }| {
            let of_list = change.lists.iter().filter(|version| version.name == list.name());
            of_list.map(move |version| (since, version))
        });
        let versions = of_list.map(|(since, ListVersion { name, hash, .. })| Version {
            since: since.clone(),
            hash: Some(*hash),
            table: Arc::clone(&tables[&(&**name, *hash)]),
        });
        list.begin(versions);
    }
    for ((name, hash), table) in &tables {
        lists.get(name).into_iter().for_each(|list| list.keep_at_hand(*hash, table));
    }
    Ok(Preloaded(tables.into_values().collect()))
}

/// Waits for the first reading of the lists, and returns what was read.
pub fn read_first(start: &StartLists<'_>) -> Vec<ReadContents> {
    start.readers.map(ListReaders::first).unwrap_or_default()
}

/// Adds what was read at the start to what is in force for all events of a run without a ledger.
pub fn add_first(read: &[ReadContents], in_force: &mut Versions) {
    let lists: Vec<_> = read.iter().map(ReadContents::version).collect();
    if !lists.is_empty() {
        let change = Change { lists, ..Change::default() };
        in_force.add(InForce { since: Since::beginning(), change });
    }
}

/// Records an epoch without records that lets what was read at the start come into force, if it is new, and adds it to the
/// epochs to replay. `latest` is the last epoch of the sinks.
///
/// # Errors
/// If the state store or the ledger fails.
pub fn record_changed(
    start: &StartLists<'_>,
    in_force: &Versions,
    origin: &mut Origin,
    latest: Epoch,
    ledger: &mut dyn Ledger,
    stored: Option<(&mut Checkpoints, WriterId)>,
) -> Result<(), RunError> {
    let Some((Checkpoints { store, .. }, writer_id)) = stored.filter(|_| !origin.is_closed()) else {
        return Ok(());
    };
    let changes = in_force.as_slice().iter().map(|in_force| &in_force.change);
    let changes = changes.chain(origin.replay.iter().map(|record| &record.change));
    let newest: BTreeMap<&str, _> =
        changes.flat_map(|change| &change.lists).map(|list| (&*list.name, list.hash)).collect();
    let mut read = read_first(start);
    read.retain(|read| newest.get(&*read.name) != Some(&read.hash));
    if read.is_empty() {
        return Ok(());
    }
    for read in &read {
        contents::put(&mut **store, &writer_id, read.hash, &read.bytes)?;
    }
    let lists: Vec<_> = read.iter().map(ReadContents::version).collect();
    let names: Vec<_> = lists.iter().map(|list| &*list.name).collect();
    tracing::info!(lists = names.join(", "), "the contents of lists are new: they come into force");
    let record = EpochRecord {
        epoch: origin.durable.max(latest).next(),
        wall_ms: wall_ms().max(origin.recorded_wall_ms().unwrap_or(i64::MIN)),
        bindings: Vec::new(),
        closes: false,
        rules: TimeRules::default(),
        change: Change { lists, ..Change::default() },
    };
    crash::point("ledger.append.before");
    ledger.append(std::slice::from_ref(&record))?;
    crash::point("ledger.append.after");
    origin.durable = record.epoch;
    origin.recorded_contents.push((record.epoch, record.change.lists.iter().map(|list| list.hash).collect()));
    origin.replay.push(record);
    Ok(())
}
