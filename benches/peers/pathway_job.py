"""The job in Pathway: the patterns as a stateful reducer by user, the windows as Pathway's own.

    PEERS_BROKERS=… PEERS_TOPIC=… PEERS_ALERTS=… PEERS_EVENTS=3000000 PEERS_STATE=DIR python pathway_job.py
"""

import json
import logging
import math
import os
import pickle
import threading
import time

import pathway as pw

from python_patterns import KeyState, alert

COMMIT_MS = 100


class Transaction(pw.Schema):
    event_id: str
    user_id: str
    event_time: int
    amount: float | None = pw.column_definition(default_value=None)
    merchant_id: str | None = pw.column_definition(default_value=None)
    lat: float | None = pw.column_definition(default_value=None)
    lon: float | None = pw.column_definition(default_value=None)


@pw.reducers.stateful_many
def detect(state, rows):
    """Processes the events of a user that have come since the last commit. The state is pickled, as Pathway compares it with the
    state before; beside it are the alerts of this commit."""
    patterns = pickle.loads(state[0]) if state else KeyState()
    alerts = []
    # In the order of the topic, which the rows of a commit do not have.
    for values, _ in sorted(rows, key=lambda row: row[0][0]):
        _, user, event_id, event_time, amount, merchant, lat, lon = values
        event = {"event_time": event_time, "amount": amount, "merchant_id": merchant}
        event["location"] = {"lat": lat, "lon": lon} if lat is not None else None
        for rule, severity in patterns.process(event):
            alerts.append(alert(rule, severity, user, event_id, event_time))
    return (pickle.dumps(patterns), tuple(alerts))


@pw.udf(deterministic=True)
def alerts_of(state: tuple) -> list[str]:
    return list(state[1])


def build(settings, events):
    """Builds the flow from the topic of events to that of alerts. `events` ends the run, unless it is 0."""
    table = pw.io.kafka.read(
        settings | {"group.id": os.environ["PEERS_ALERTS"], "auto.offset.reset": "earliest"},
        os.environ["PEERS_TOPIC"],
        schema=Transaction,
        format="json",
        json_field_paths={"lat": "/location/lat", "lon": "/location/lon"},
        autocommit_duration_ms=COMMIT_MS,
        with_metadata=True,
        # Otherwise all of a topic that is read from its beginning would be in memory at once.
        max_backlog_size=50_000,
        name="events",
    )
    t = pw.this
    states = table.groupby(t.user_id).reduce(
        t.user_id,
        state=detect(
            t._metadata["offset"].as_int(), t.user_id, t.event_id, t.event_time, t.amount, t.merchant_id, t.lat, t.lon
        ),
    )
    alerts = states.select(t.user_id, alert=alerts_of(t.state)).flatten(t.alert)
    pw.io.kafka.write(alerts, settings, os.environ["PEERS_ALERTS"], format="plaintext", key=t.user_id, value=t.alert)
    # Reducers take no missing values.
    amounts = table.select(
        t.user_id,
        t.event_time,
        amount=pw.coalesce(t.amount, 0.0),
        low=pw.coalesce(t.amount, math.inf),
        high=pw.coalesce(t.amount, -math.inf),
    )
    minutes = pw.temporal.tumbling(60_000)
    behavior = pw.temporal.common_behavior(cutoff=5000)
    windows = amounts.windowby(t.event_time, window=minutes, instance=t.user_id, behavior=behavior).reduce(
        count=pw.reducers.count(), sum=pw.reducers.sum(t.amount), min=pw.reducers.min(t.low), max=pw.reducers.max(t.high)
    )
    pw.io.null.write(windows)
    if events:
        end_after(table, events)


def end_after(table, events):
    """Ends the process once all events are processed: a topic has no end of its own."""
    begin = time.monotonic()

    def changed(key, row, time, is_addition):
        if is_addition and row["count"] == events:
            # The commit of the last events is not written yet when its results are reported.
            threading.Timer(1, end).start()

    def end():
        print(json.dumps({"run_s": time.monotonic() - begin - 1}), flush=True)
        os._exit(0)

    pw.io.subscribe(table.reduce(count=pw.reducers.count()), changed)


# Otherwise each write of each commit is logged.
logging.disable(logging.WARNING)
build({"bootstrap.servers": os.environ["PEERS_BROKERS"]}, int(os.environ["PEERS_EVENTS"]))
# The input is persisted, and replayed at a start. Persisted state (`OPERATOR_PERSISTING`) needs a licence key.
backend = pw.persistence.Backend.filesystem(os.environ["PEERS_STATE"])
persistence = pw.persistence.Config(backend, snapshot_interval_ms=10_000)
pw.run(monitoring_level=pw.MonitoringLevel.NONE, persistence_config=persistence)
