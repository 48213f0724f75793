"""Events, settings and bindings for tests, with only what a test is about spelled out."""

import datetime
import json

import config
from decode import decode
from records import Binding, BoundEpoch, Record


def value(time, event_id="e", user="u", **fields):
    """A record's value."""
    return json.dumps(
        {"event_id": event_id, "event_type": "transaction", "user_id": user, "event_time": instant(time), **fields}
    ).encode()


def instant(time):
    """A time in milliseconds as text: as a number, a small one would be taken for seconds."""
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(milliseconds=time)
    return moment.isoformat(timespec="milliseconds")


def record(partition, offset, time, timestamp=None, **fields):
    return Record(partition, offset, timestamp, value(time, fields.pop("event_id", f"{partition}:{offset}"), **fields))


def event(time, offset=0, partition=0, **fields):
    """An event as the flow hands it on."""
    made = decode(value(time, fields.pop("event_id", f"{partition}:{offset}"), **fields))
    made.partition, made.offset = partition, offset
    return made


def bound(epoch, *bindings, watermark=None, close=False, wall_ms=None):
    """An epoch; bindings are (partition, end, greatest event time) and perhaps "idle"."""
    taken = [
        Binding(partition, end, None, greatest, idle == ["idle"]) for partition, end, greatest, *idle in bindings
    ]
    return BoundEpoch(epoch, wall_ms, watermark, close, taken)


def settings(**given):
    """Settings with no disorder and no patterns unless given."""
    given = {"pipeline": "p", "patterns": {}, "time": {"max_out_of_orderness_ms": 0}, **given}
    return config.settings(given)
