-- The order in which alerts change, which readers of the newest and followers of all changes use.
CREATE INDEX alerts_change ON alerts (epoch, alert_id);
