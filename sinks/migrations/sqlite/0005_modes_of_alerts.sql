-- The mode of the rule that raised the alert: all alerts of before are live. Readers of either mode have an index in the
-- order of changes; live alerts are usually by far the most, so theirs is the index over all.
ALTER TABLE alerts ADD COLUMN mode TEXT NOT NULL DEFAULT 'live';
CREATE INDEX alerts_shadow ON alerts (epoch, alert_id) WHERE mode = 'shadow';
