//! The executable specification of the operators, and tests that compare the operators with it.
//!
//! Every window and every pattern has two implementations. The fast one, in the crate, steps each event once, undoes
//! steps when an event arrives out of order, and evicts what is final. The other one, in [`spec`], sorts all events
//! that a key ever had and computes the answers directly from the definition. It is slow and short, and it defines the
//! correct results of the fast one. Random streams ([`streams`]) are processed by both, and the two output collections
//! must be equal at the end of every epoch.
//!
//! `PROPTEST_CASES` sets the number of streams that each test tries. Each test prints the numbers of emitted and revoked
//! results (`--nocapture`), and fails if they are too low.

mod accumulate;
mod admission;
mod backfill;
mod downstream;
mod event;
mod expiry;
mod harness;
mod restore;
mod rule_sets;
mod rule_versions;
mod scan;
mod sequences;
mod spec;
mod streams;
mod undo;
mod windows;
mod workers;
