"""The input of a run: recorded records or files of NDJSON, and the bindings of its epochs."""

import base64
import hashlib
import json
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """A record of the input. Without a timestamp, the time of its writing is unknown."""

    partition: int
    offset: int
    timestamp: int | None
    value: bytes | None
    # The bytes of the record, if `value` is what they are in JSON.
    original: bytes | None = None

    @property
    def digest(self):
        original = self.value if self.original is None else self.original
        return None if original is None else hashlib.sha256(original).digest()


@dataclass(slots=True)
class Binding:
    """The records of an epoch in a partition: those below `end` that belong to no earlier epoch."""

    partition: int
    end: int
    timestamp: int | None
    max_event_time: int | None
    idle: bool
    # The greatest pushing time, if the epoch increased it, and the candidate; None if they are not recorded.
    pushed: tuple | None = None


@dataclass(slots=True)
class BoundEpoch:
    """An epoch as recorded by the engine."""

    epoch: int
    wall_ms: int | None
    watermark: int | None
    close: bool
    bindings: list = field(default_factory=list)
    # The text of the rules that are in force for events of later epochs, if they change.
    rules: str | None = None


def recorded(path):
    """Reads lines of {"partition", "offset", "timestamp", "value": base64 or null}; the key of a record has no effect. If the
    record is in another format than JSON, "original" has its bytes, in base64."""
    with open(path, "rb") as lines:
        for line in lines:
            record = json.loads(line)
            value, original = record["value"], record.get("original")
            yield Record(
                record["partition"],
                record["offset"],
                record["timestamp"],
                None if value is None else base64.b64decode(value, validate=True),
                None if original is None else base64.b64decode(original, validate=True),
            )


def files(paths):
    """Reads files of NDJSON, each a partition, in the given order or by name in a directory; each line is an offset."""
    if len(paths) == 1 and paths[0].is_dir():
        paths = sorted(path for path in paths[0].iterdir() if path.is_file())
    for partition, path in enumerate(paths):
        with open(path, "rb") as lines:
            for offset, line in enumerate(lines):
                yield Record(partition, offset, None, line.removesuffix(b"\n"))


def bindings(path):
    """Reads lines of {"epoch", "wall_ms", "partitions": [{"partition", "end", "timestamp", "max_event_time", "idle"}],
    "watermark", "close", "change"}, one per epoch, in ascending order."""
    epochs = []
    with open(path, "rb") as lines:
        for line in lines:
            bound = json.loads(line)
            parsed = [
                Binding(
                    at["partition"], at["end"], at.get("timestamp"), at.get("max_event_time"), at["idle"],
                    (at["pushing_time"], at["candidate"]) if "pushing_time" in at else None,
                )
                for at in bound.get("partitions", [])
            ]
            epochs.append(
                BoundEpoch(
                    bound["epoch"], bound.get("wall_ms"), bound.get("watermark"), bound.get("close", False), parsed,
                    bound.get("change", {}).get("rules"),
                )
            )
    return epochs
