//! When anything becomes durable: pure decisions, no network, no clock.
