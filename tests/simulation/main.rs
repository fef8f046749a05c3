//! The lane and the gate under hostile schedules: seeds decide who is served next, which reply is lost, when the program
//! crashes and when a route flips. A model of two stores knows every value that a client may see; after each step no other
//! may be there. The same seed runs the same way.
//!
//! `SEEDS=100000 cargo test --test simulation` looks longer; `SEED=42` runs one.

mod world;

use world::{Bug, World};

/// Steps of one seed: some thousand commands, a few flips, crashes and lost links.
const STEPS: u32 = 400;
/// Seeds where nothing else is asked for: about ten seconds on a slow machine.
const SEEDS: u64 = 10_000;

fn run(seed: u64, bug: Bug) -> Result<(), String> {
    let mut world = World::new(seed, bug);
    for step in 0..STEPS {
        world.step().map_err(|wrong| format!("seed {seed}, step {step}: {wrong}\n{}", world.story()))?;
    }
    world.settle().map_err(|wrong| format!("seed {seed}, at the end: {wrong}\n{}", world.story()))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn no_schedule_loses_resurrects_or_reorders_a_write() {
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        if let Err(wrong) = run(seed, Bug::None) {
            panic!("{wrong}");
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    let story = |seed| {
        let mut world = World::new(seed, Bug::None);
        for _ in 0..STEPS {
            world.step().expect("nothing wrong");
        }
        world.story()
    };
    assert_eq!(story(7), story(7));
}

/// A check that cannot fail is none: each bug that is put in on purpose has to be found.
#[test]
fn bugs_put_in_on_purpose_are_found() {
    for bug in [Bug::OrderSwapped, Bug::PresenceTrusted, Bug::TombstoneLost, Bug::DoubtForgotten] {
        assert!((0..SEEDS).any(|seed| run(seed, bug).is_err()), "{bug:?} was not found");
    }
}
