//! A simulation of reading in virtual time: partitions whose producers send events, junk, late events and events of
//! clocks that are ahead, leave transactions open and fall silent; leaders that go away; a reader that is held back,
//! frozen, and told the wrong time of day. What decides is the code that decides in a run.
//!
//! Checked at every step, against what is known of the world and the program is not told: final results go on, or
//! what holds them up is named, and truly does; nothing that a producer sends makes the records of an honest one late;
//! memory stays bounded; and replay binds alike.
//!
//! Each [guard](Guards) can be taken out; a test shows that what it guards then breaks.

mod engine;
mod world;

use engine::Engine;
use world::World;

use crate::coordination::trials::{Random, Violation, breaks_in, guards};

// Each with one of the promises that break without it.
guards! {
    rejected_records_do_not_postpone_idleness: "a partition that moves nothing holds the watermark",
    idle_partitions_were_read_to_their_end: "an honest record is late",
    only_time_of_reading_counts_for_idleness: "an honest record is late",
    leaders_that_fail_are_not_silent: "an honest record is late",
    held_partitions_are_not_idle: "an honest record is late",
    no_clock_ahead_pushes_others: "an honest record is late",
    wall_time_never_goes_back: "an honest record is refused as of the future",
    all_but_the_slowest_pause_at_the_limit: "more is un-final than may be",
    the_slowest_reads_on: "what holds the watermark is not read",
    stalls_are_named: "nothing is read, and nothing is said",
}

/// What happened: that it did happen is part of what the runs show.
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

/// How many steps a history has: a minute.
const STEPS: usize = 1200;

/// One random history.
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

/// So many histories.
fn runs(guards: &Guards, histories: u64) -> Result<Tally, (u64, Violation)> {
    let mut tally = Tally::default();
    for seed in 1..=histories {
        run(Random::mix(seed), guards, &mut tally).map_err(|violation| (seed, violation))?;
    }
    Ok(tally)
}

/// Every promise is kept: by default in 300 histories.
#[test]
fn results_go_on_or_what_holds_them_up_is_named() {
    let histories = std::env::var("HEADWATER_SIMULATED_HISTORIES").ok().and_then(|n| n.parse().ok());
    let tally = runs(&ALL, histories.unwrap_or(300)).expect("every promise is kept");
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

/// Without a guard a promise breaks, and before long.
fn breaks(guards: &Guards, expected: Violation) {
    breaks_in(1..1_000, expected, |seed| run(seed, guards, &mut Tally::default()));
}
