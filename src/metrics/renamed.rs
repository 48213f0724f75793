//! Metrics that were renamed. Dashboards and alerts that use the old names find them until they are removed.

use prometheus::proto::MetricFamily;

/// The old name, the new name, and the factor from the new unit to the old one.
const RENAMED: [(&str, &str, f64); 3] = [
    ("headwater_rejected_total", "headwater_dead_letters_total", 1.0),
    ("headwater_watermark_ms", "headwater_watermark_timestamp_seconds", 1e3),
    ("headwater_checkpoint_time_ms", "headwater_checkpoint_timestamp_seconds", 1e3),
];

/// Adds a copy of each renamed metric under its old name.
pub fn with_old_names(mut families: Vec<MetricFamily>) -> Vec<MetricFamily> {
    for (old, new, factor) in RENAMED {
        let Some(family) = families.iter().find(|family| family.name() == new) else { continue };
        let mut family = family.clone();
        family.set_name(old.to_owned());
        family.set_help(format!("Deprecated: use {new}"));
        if factor != 1.0 {
            for metric in family.mut_metric() {
                let mut gauge = metric.get_gauge().clone();
                gauge.set_value((gauge.get_value() * factor).round());
                metric.set_gauge(gauge);
            }
        }
        families.push(family);
    }
    families
}
