//! The executable specification of the operators, and the tests that hold them to it.
//!
//! Every window and every pattern has two forms. The fast one, in the crate, steps each event once, goes back when
//! an event arrives out of order and forgets what is final. The other one, under [`spec`], looks at all events that
//! a key ever had, sorts them, and reads the answer off the definition: it is slow and short, and it is what the
//! fast form means. Random streams ([`streams`]) go through both, and what stands in the two output collections
//! must be the same at the end of every epoch.
//!
//! `PROPTEST_CASES` sets how many streams each test tries. Each says how many results it has seen given and revoked
//! (`--nocapture`), and fails if the streams have exercised too few.

mod accumulate;
mod admission;
mod downstream;
mod event;
mod expiry;
mod harness;
mod restore;
mod scan;
mod sequences;
mod spec;
mod streams;
mod undo;
mod windows;
mod workers;
