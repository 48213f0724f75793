//! The whole program over whole inputs, against an oracle that shares nothing with it.

mod bench;
mod changes;
mod checkpoints;
mod cluster;
mod common;
mod crash;
mod crash_points;
mod doubtful;
mod faults;
mod files;
mod input;
mod kafka;
mod live;
mod liveness;
mod liveness_files;
mod lost_input;
mod postgres;
mod proxy;
mod restart;
mod services;
mod side_by_side;
mod skip;
mod status;
mod torture;
mod transactions;
mod way_on;
