//! What operators see: counters, gauges and histograms for Prometheus.
