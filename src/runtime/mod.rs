//! Workers, the dataflow, the driver that carries out coordination's decisions, shutdown.
