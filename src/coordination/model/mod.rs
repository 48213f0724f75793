//! A model of a cluster of one or two processes, which become more or fewer with each start, their ledger, sinks and state
//! store: random interleavings with crashes at any point, processes that sleep and go on after their successors have taken
//! over, or take their ids back then, writes whose outcome nobody hears, writes that arrive late, sinks that are wiped and
//! manifests that are damaged. What decides is the code that decides in a run.
//!
//! Each [guard](Guards) can be taken out of the model; a test shows that what it guards then breaks.

mod process;
mod world;

use process::{Life, Process};
use world::World;

use super::trials::{Random, Violation, breaks_in, guards};

/// How many shards have state; each is on a worker of its own.
const SHARDED: usize = 2;

/// How many processes there are at the most; the shards lie on one, or are parted among two.
const PROCESSES: usize = 2;

// Each with one of the promises that break without it.
guards! {
    rounds_check_the_generation: "an epoch is recorded that does not follow the last one",
    manifests_check_the_generation: "a part is gone",
    bindings_come_before_commits: "a sink is above the ledger",
    sinks_are_fenced: "a result is doubled",
    writers_that_are_no_more_are_fenced: "a result is doubled",
    whoever_takes_over_reads_what_others_said: "a result is doubled",
    sinks_skip_what_they_have: "a result is doubled",
    shards_skip_what_they_have: "a result is doubled",
    one_mark_is_in_flight: "a delta does not follow what is before it",
    marks_are_above_every_manifest: "a manifest does not stand above those before",
    manifests_wait_for_sinks: "a manifest is above a sink",
    parts_come_before_the_manifest: "a part is gone",
    parts_are_deleted_after_the_manifest: "a part is gone",
    what_is_kept_is_not_deleted: "a part is gone",
    only_what_older_starts_left_is_deleted: "a part is gone",
    manifests_are_read_after_the_claim: "a part is gone",
    names_have_the_generation: "a checkpoint is not what it was",
    rounds_are_pruned_to_the_oldest: "what follows a manifest is not recorded any more",
    what_was_pruned_is_refused: "what is done again does not follow what was restored",
    origins_are_not_above_a_sink: "a result is lost",
    deltas_follow_the_origin: "a delta does not follow what is before it",
    positions_come_from_the_manifest: "an epoch is recorded that does not follow the last one",
    manifests_count_as_durable: "a start is refused that could go on",
}

/// What happened in runs that kept every promise: that it did happen is part of what they show.
#[derive(Default, Debug)]
struct Tally {
    steps: usize,
    starts: usize,
    checkpoints: usize,
    from_checkpoints: usize,
    pruned: usize,
    refused: usize,
    /// Starts that found the shards of a sink unequally far.
    uneven: usize,
}

/// One random run.
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
                // Nobody was writing: a sink that forgets who fenced it is not promised anything.
                process = Process::new(&mut random);
                sleeping.clear();
                world.on_their_way.clear();
            }
            13..23 => world.arrive(&mut random)?,
            23..60 if !sleeping.is_empty() => {
                let at = random.below(sleeping.len());
                if sleeping[at].step(&mut world, &mut random)? != Life::Goes {
                    drop(sleeping.swap_remove(at));
                }
            }
            _ => {
                let was_running = process.runs();
                match process.step(&mut world, &mut random)? {
                    Life::Goes => {}
                    Life::Ended => process = Process::new(&mut random),
                    Life::Refused => {
                        tally.refused += 1;
                        return match world.sinks.iter().any(|sink| sink.wiped) {
                            true => Ok(()),
                            false => Err("a start is refused that could go on"),
                        };
                    }
                }
                if !was_running && process.runs() {
                    tally.starts += 1;
                    tally.uneven += usize::from(world.sinks.iter().any(|sink| sink.is_uneven()));
                    tally.from_checkpoints += usize::from(process.restored());
                }
            }
        }
        world.check()?;
    }
    tally.checkpoints += world.manifests.len();
    tally.pruned += usize::from(world.pruned.0 > 0);
    goes_on(&mut world, &mut random)
}

/// Left in peace, a start brings every sink to the ledger's end and concludes a checkpoint.
fn goes_on(world: &mut World, random: &mut Random) -> Result<(), Violation> {
    (world.calm, world.on_their_way) = (true, Vec::new());
    let (recorded, checkpoint) = (world.durable(), world.newest());
    let mut process = Process::new(random);
    for _ in 0..10_000 {
        match process.step(world, random)? {
            Life::Goes => {}
            Life::Refused if world.sinks.iter().any(|sink| sink.wiped) => return Ok(()),
            Life::Refused | Life::Ended => return Err("a start is refused that could go on"),
        }
        if world.sinks.iter().all(|sink| sink.through() >= recorded) && world.newest() > checkpoint {
            return world.check();
        }
    }
    Err("nothing goes on")
}

/// Runs of 500 steps until `steps` are done.
fn runs(guards: &Guards, steps: usize) -> Result<Tally, (u64, Violation)> {
    let mut tally = Tally::default();
    let mut seed = 0;
    while tally.steps < steps {
        seed += 1;
        run(Random::mix(seed), guards, 500, &mut tally).map_err(|violation| (seed, violation))?;
    }
    Ok(tally)
}

/// Every promise is kept: by default for 100,000 steps.
#[test]
fn nothing_is_lost_doubled_or_unreadable_whatever_is_interrupted() {
    let steps = std::env::var("HEADWATER_MODEL_STEPS").ok().and_then(|steps| steps.parse().ok());
    let tally = runs(&ALL, steps.unwrap_or(100_000)).expect("every promise is kept");
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

/// Without a guard a promise breaks, and before long.
fn breaks(guards: &Guards, expected: Violation) {
    let mut tally = Tally::default();
    breaks_in(0..4_000, expected, |seed| run(seed, guards, 500, &mut tally));
}
