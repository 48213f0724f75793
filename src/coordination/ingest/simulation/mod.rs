//! A simulation of reading in virtual time. The producers of partitions send events, junk, late events and events of
//! clocks that are ahead, leave transactions open and fall silent. Leaders become unavailable. The reader is blocked
//! by sinks, is frozen, and has a wrong system clock. All decisions are made by the production code.
//!
//! Every step checks against the true state of the world, which the program does not have: final results advance, or
//! the partition that truly holds them up is named; nothing that a producer sends makes the records of an honest
//! producer late; memory stays bounded; and replay gives the same bindings.
//!
//! Each [guard](Guards) can be removed; a test shows which invariant then breaks.

mod engine;
mod world;

use engine::Engine;
use world::World;

use crate::coordination::trials::{Random, Violation, breaks_in, guards};

// Each guard with one of the invariants that break without it.
guards! {
    rejected_records_do_not_postpone_idleness: "a partition without progress holds the watermark",
    idle_partitions_were_read_to_their_end: "an honest record is late",
    only_time_of_reading_counts_for_idleness: "an honest record is late",
    leaders_that_fail_are_not_silent: "an honest record is late",
    held_partitions_are_not_idle: "an honest record is late",
    no_clock_ahead_pushes_others: "an honest record is late",
    wall_time_never_goes_back: "an honest record is rejected as future",
    all_but_the_slowest_pause_at_the_limit: "un-final bytes exceed the limit",
    the_slowest_reads_on: "the partition that holds the watermark is not read",
    stalls_are_named: "nothing is read, and no stall is reported",
}

/// The number of events of each kind, to prove that they did occur.
#[derive(Clone, Copy, Default, Debug)]
struct Tally {
    histories: usize,
    read: usize,
    idle: usize,
    stalls: usize,
    held: usize,
    late: usize,
    paused: usize,
    outages: usize,
    frozen: usize,
}

/// The number of steps in a history: one minute.
const STEPS: usize = 1200;

/// Executes one random history.
fn run(seed: u64, guards: &Guards, tally: &mut Tally) -> Result<(), Violation> {
    let mut random = Random(seed);
    let mut world = World::new(&mut random);
    let mut engine = Engine::new(&world, guards.clone());
    for _ in 0..STEPS {
        world.step(&mut random);
        if world.is_frozen() {
            tally.frozen += 1;
            continue;
        }
        engine.step(&mut world, tally)?;
    }
    tally.histories += 1;
    engine.replay()
}

/// Executes `histories` histories.
fn runs(guards: &Guards, histories: u64) -> Result<Tally, (u64, Violation)> {
    let mut tally = Tally::default();
    for seed in 1..=histories {
        run(Random::mix(seed), guards, &mut tally).map_err(|violation| (seed, violation))?;
    }
    Ok(tally)
}

/// Checks every invariant, by default in 300 histories.
#[test]
fn results_go_on_or_what_holds_them_up_is_named() {
    let histories = std::env::var("HEADWATER_SIMULATED_HISTORIES").ok().and_then(|n| n.parse().ok());
    let tally = runs(&ALL, histories.unwrap_or(300)).expect("every invariant holds");
    println!("{tally:?}");
    let Tally { read, idle, stalls, held, late, paused, outages, frozen, .. } = tally;
    for (n, what) in [
        (read, "records"),
        (idle, "idle partitions"),
        (stalls, "stalls"),
        (held, "held partitions"),
        (late, "late records"),
        (paused, "pauses"),
        (outages, "outages"),
        (frozen, "frozen steps"),
    ] {
        assert!(n > 100, "few {what}: {tally:?}");
    }
}

/// Checks that an invariant soon breaks without a guard.
fn breaks(guards: &Guards, expected: Violation) {
    breaks_in(1..1_000, expected, |seed| run(seed, guards, &mut Tally::default()));
}
