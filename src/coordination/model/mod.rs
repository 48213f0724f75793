//! A model of a cluster with its ledger, sinks and state store. The cluster has one or two processes; their number can
//! change with each start. The model runs random interleavings with crashes at any point, processes that sleep and
//! continue after their successors have taken over (or take their ids back), writes of unknown outcome, delayed
//! writes, wiped sinks and damaged manifests. All decisions are made by the production code.
//!
//! Each [guard](Guards) can be removed from the model; a test shows which invariant then breaks.

mod process;
mod world;

use process::{Process, Status};
use world::World;

use super::trials::{Random, Violation, breaks_in, guards};

/// The number of shards with state; each is on a worker of its own.
const SHARDED: usize = 2;

/// The maximum number of processes; the shards are all on one, or divided between two.
const PROCESSES: usize = 2;

// Each guard with one of the invariants that break without it.
guards! {
    rounds_check_the_generation: "a recorded epoch does not follow the last one",
    manifests_check_the_generation: "a part is missing",
    bindings_come_before_commits: "a sink is ahead of the ledger",
    sinks_are_fenced: "a result is duplicated",
    former_writers_are_fenced: "a result is duplicated",
    takeovers_check_announced_generations: "a result is duplicated",
    sinks_skip_committed_epochs: "a result is duplicated",
    shards_skip_committed_epochs: "a result is duplicated",
    one_mark_is_in_flight: "a delta does not follow the previous part",
    marks_are_above_every_manifest: "a manifest is not newer than the previous ones",
    manifests_wait_for_sinks: "a manifest is ahead of a sink",
    parts_come_before_the_manifest: "a part is missing",
    parts_are_deleted_after_the_manifest: "a part is missing",
    kept_parts_are_not_deleted: "a part is missing",
    only_parts_of_older_starts_are_deleted: "a part is missing",
    manifests_are_read_after_the_claim: "a part is missing",
    names_have_the_generation: "a checkpoint differs from the recorded state",
    rounds_are_pruned_to_the_oldest: "the epochs after a manifest are not recorded any more",
    reads_of_pruned_epochs_are_refused: "a replayed epoch does not follow the restored state",
    origins_are_not_above_a_sink: "a result is lost",
    deltas_follow_the_origin: "a delta does not follow the previous part",
    positions_come_from_the_manifest: "a recorded epoch does not follow the last one",
    manifests_count_as_durable: "a start that could resume is refused",
}

/// The number of events of each kind in runs without violations, to prove that they did occur.
#[derive(Default, Debug)]
struct Tally {
    steps: usize,
    starts: usize,
    checkpoints: usize,
    from_checkpoints: usize,
    pruned: usize,
    refused: usize,
    /// The number of starts that found different progress in the shards of a sink.
    uneven: usize,
}

/// Executes one random run.
fn run(seed: u64, guards: &Guards, steps: usize, tally: &mut Tally) -> Result<(), Violation> {
    let mut random = Random(seed);
    let mut world = World::new(guards.clone(), 1 + random.below(3), 1 + random.below(3));
    let mut sleeping: Vec<Process> = Vec::new();
    let mut process = Process::new(&mut random);
    for _ in 0..steps {
        tally.steps += 1;
        match random.below(400) {
            0..4 => process = Process::new(&mut random),
            4..8 => sleeping.push(std::mem::replace(&mut process, Process::new(&mut random))),
            8..12 if random.below(4) == 0 => world.damage(),
            12 if random.below(4) == 0 => {
                let sink = random.below(world.sinks.len());
                world.wipe(sink);
                // No process may be writing: a sink that has lost its fencing gives no guarantees.
                process = Process::new(&mut random);
                sleeping.clear();
                world.in_flight.clear();
            }
            13..23 => world.arrive(&mut random)?,
            23..60 if !sleeping.is_empty() => {
                let at = random.below(sleeping.len());
                if sleeping[at].step(&mut world, &mut random)? != Status::Running {
                    drop(sleeping.swap_remove(at));
                }
            }
            _ => {
                let was_running = process.is_running();
                match process.step(&mut world, &mut random)? {
                    Status::Running => {}
                    Status::Ended => process = Process::new(&mut random),
                    Status::Refused => {
                        tally.refused += 1;
                        return match world.sinks.iter().any(|sink| sink.is_wiped) {
                            true => Ok(()),
                            false => Err("a start that could resume is refused"),
                        };
                    }
                }
                if !was_running && process.is_running() {
                    tally.starts += 1;
                    tally.uneven += usize::from(world.sinks.iter().any(|sink| sink.is_uneven()));
                    tally.from_checkpoints += usize::from(process.is_restored());
                }
            }
        }
        world.check()?;
    }
    tally.checkpoints += world.manifests.len();
    tally.pruned += usize::from(world.pruned.0 > 0);
    check_recovery(&mut world, &mut random)
}

/// Checks that, without further faults, a start commits everything recorded to every sink and concludes a checkpoint.
fn check_recovery(world: &mut World, random: &mut Random) -> Result<(), Violation> {
    (world.is_calm, world.in_flight) = (true, Vec::new());
    let (recorded, checkpoint) = (world.durable(), world.newest());
    let mut process = Process::new(random);
    for _ in 0..10_000 {
        match process.step(world, random)? {
            Status::Running => {}
            Status::Refused if world.sinks.iter().any(|sink| sink.is_wiped) => return Ok(()),
            Status::Refused | Status::Ended => return Err("a start that could resume is refused"),
        }
        if world.sinks.iter().all(|sink| sink.through() >= recorded) && world.newest() > checkpoint {
            return world.check();
        }
    }
    Err("nothing advances")
}

/// Executes runs of 500 steps until `steps` steps are done.
fn runs(guards: &Guards, steps: usize) -> Result<Tally, (u64, Violation)> {
    let mut tally = Tally::default();
    let mut seed = 0;
    while tally.steps < steps {
        seed += 1;
        run(Random::mix(seed), guards, 500, &mut tally).map_err(|violation| (seed, violation))?;
    }
    Ok(tally)
}

/// Checks every invariant, by default for 100,000 steps.
#[test]
fn results_are_neither_lost_nor_duplicated_by_interruptions() {
    let steps = std::env::var("HEADWATER_MODEL_STEPS").ok().and_then(|steps| steps.parse().ok());
    let tally = runs(&ALL, steps.unwrap_or(100_000)).expect("every invariant holds");
    println!("{tally:?}");
    let Tally { starts, checkpoints, from_checkpoints, pruned, refused, uneven, .. } = tally;
    assert!(
        starts > 100
            && checkpoints > 100
            && from_checkpoints > 100
            && pruned > 10
            && refused > 0
            && uneven > 10,
        "{tally:?}"
    );
}

/// Checks that an invariant soon breaks without a guard.
fn breaks(guards: &Guards, expected: Violation) {
    let mut tally = Tally::default();
    breaks_in(0..4_000, expected, |seed| run(seed, guards, 500, &mut tally));
}
