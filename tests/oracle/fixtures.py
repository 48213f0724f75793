"""Builders of events, settings and bindings for tests, with defaults for everything that a test does not set."""

import datetime
import json

import config
from decode import decode
from records import Binding, BoundEpoch, Record


def value(time, event_id="e", user="u", **fields):
    """Returns the value of a record."""
    return json.dumps(
        {"event_id": event_id, "event_type": "transaction", "user_id": user, "event_time": instant(time), **fields}
    ).encode()


def instant(time):
    """Returns a time in milliseconds as text; a small number would be read as seconds."""
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=time)
    return moment.isoformat(timespec="milliseconds")


def record(partition, offset, time, timestamp=None, **fields):
    return Record(partition, offset, timestamp, value(time, fields.pop("event_id", f"{partition}:{offset}"), **fields))


def event(time, offset=0, partition=0, **fields):
    """Returns an event as the flow emits it."""
    made = decode(value(time, fields.pop("event_id", f"{partition}:{offset}"), **fields))
    made.partition, made.offset = partition, offset
    return made


def bound(epoch, *bindings, watermark=None, close=False, wall_ms=None):
    """Returns an epoch; bindings are (partition, end, greatest event time) and optionally "idle"."""
    parsed = [
        Binding(partition, end, None, greatest, idle == ["idle"]) for partition, end, greatest, *idle in bindings
    ]
    return BoundEpoch(epoch, wall_ms, watermark, close, parsed)


def settings(**given):
    """Returns settings, by default without disorder and patterns."""
    given = {"pipeline": "p", "patterns": {}, "time": {"max_out_of_orderness_ms": 0}, **given}
    return config.settings(given)
