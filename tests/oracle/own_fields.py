"""Events of one's own schema: the fields of a record by the section `[fields]`, and the keys of `[keys]`.

Of docs/fields.md this reads JSON records, paths of members and elements, constants, locations, and the types and time
formats that tests use. Decimals are millionths, times milliseconds since 1970.
"""

import datetime
import json
import re
from dataclasses import dataclass
from fractions import Fraction

from decode import Rejected, invalid, malformed

MICRO = 10**6
LARGEST = 10**12 * MICRO
LAST_MS = 253_402_300_799_999
STANDARD = {
    "event_id": "string", "event_type": "string", "user_id": "string", "device_id": "string",
    "event_time": "timestamp", "amount": "decimal", "currency": "string", "merchant_id": "string",
    "merchant_category": "string", "ip_address": "string", "session_id": "string", "location": "location",
}  # fmt: skip
# The digits after the point of a second.
UNITS = {"unix_s": 3, "unix_ms": 0, "unix_us": -3, "unix_ns": -6}


class Number(str):
    """A JSON number, as its text."""


@dataclass(slots=True)
class Event:
    """A decoded record: its fields by name, without those that are absent."""

    fields: dict
    time: int
    kind: str
    key: str
    absent: tuple = ()
    # Position and epoch of the record, set by the flow.
    partition: int = 0
    offset: int = 0
    timestamp: int | None = None
    digest: bytes | None = None
    epoch: int = 0

    @property
    def order(self):
        return (self.time, self.partition, self.offset)

    @property
    def event_id(self):
        """The id in outputs: that of the record, or its position."""
        return self.fields.get("event_id", f"{self.partition}-{self.offset}")

    @property
    def amount(self):
        return self.fields.get("amount")

    @property
    def merchant_id(self):
        return self.fields.get("merchant_id")


@dataclass
class Field:
    """A field of the section."""

    name: str
    kind: str
    path: list | None = None
    const: object = None
    lat: list | None = None
    lon: list | None = None
    scale: int = 0
    format: str | None = None
    negated: bool = False
    required: bool = False
    place: str = ""

    def value(self, record):
        """Returns the field's value in a record; None if it is absent."""
        if self.const is not None:
            return convert(self, Number(self.const) if isinstance(self.const, int) else self.const)
        if self.lat is not None:
            lat, lon = at(record, self.lat), at(record, self.lon)
            if lat is None and lon is None:
                return None
            return (degrees(lat, 90), degrees(lon, 180))
        found = at(record, self.path)
        return None if found is None else convert(self, found)


@dataclass
class Schema:
    """The sections `[fields]` and `[keys]`."""

    fields: list
    keys: dict

    def __post_init__(self):
        self.types = {of.name: of.kind for of in self.fields}

    @staticmethod
    def of(config):
        fields = [one(name, given) for name, given in config["fields"].items()]
        named = {"user": "user_id", "device": "device_id", **config.get("keys", {})}
        return Schema(fields, {space: [of] if isinstance(of, str) else of for space, of in named.items()})

    def decode(self, value, strict=False):
        """Decodes a record's value or raises Rejected; if `strict`, also for an optional field of another form."""
        record = parse(value)
        found, absent = {}, []
        for of in self.fields:
            try:
                given = of.value(record)
            except ValueError as error:
                if of.required or strict:
                    raise malformed(of.place, str(error)) from error
                absent.append(of.name)
                continue
            if given is None or given == "" and of.required:
                if of.required:
                    raise invalid(of.place, "is missing")
                continue
            found[of.name] = given
        device = found.get("event_type", "event") == "iot_sensor"
        key = found.get("device_id" if device else "user_id") or None
        kind = "none" if key is None else "device" if device else "user"
        return Event(found, found["event_time"], kind, key or "", tuple(absent))

    def key(self, space, event):
        """Returns kind and key of an event in a key space; None if it has none. `key` is the event's own key."""
        if space in ("key", "user_id", "device_id"):
            kinds = {"key": ("user", "device"), "user_id": ("user",), "device_id": ("device",)}[space]
            return (event.kind, event.key) if event.kind in kinds else None
        names = self.keys[space]
        values = [event.fields.get(name) for name in names]
        if any(value is None or value == "" for value in values):
            return None
        types = self.types
        texts = [plain(types[name], value) for name, value in zip(names, values)]
        if len(names) == 1:
            return space, texts[0]
        quoted = (
            json.dumps(text, ensure_ascii=False) if types[name] in ("string", "timestamp") else text
            for name, text in zip(names, texts)
        )
        return space, "[" + ",".join(quoted) + "]"


def one(name, given):
    """Returns the field of a line of the section."""
    if isinstance(given, str):
        given = {"path": given}
    kind = given.get("type", STANDARD.get(name, "string"))
    required = given.get("required", False) or name in ("event_id", "event_time")
    path = given.get("path")
    return Field(
        name=name,
        kind=kind,
        path=steps(path) if path is not None else None,
        const=given.get("const"),
        lat=steps(given["lat"]) if "lat" in given else None,
        lon=steps(given["lon"]) if "lon" in given else None,
        scale=int(given.get("scale", 0)),
        format=given.get("format"),
        negated=given.get("not", False),
        required=required,
        place=path or name,
    )


def steps(path):
    """Splits a path such as `a.b[0]` into its members and elements. Refuses other forms of paths."""
    if re.search(r"['$]", path):
        raise ValueError(f"the oracle does not know the path {path}")
    found = re.findall(r"([^.\[\]]+)|\[([0-9]+)\]", path)
    return [int(index) if index else name for name, index in found]


def at(record, path):
    for step in path:
        if isinstance(step, int):
            record = record[step] if isinstance(record, list) and step < len(record) else None
        else:
            record = record.get(step) if isinstance(record, dict) else None
    return record


def parse(value):
    if value is None:
        raise malformed(None, "no value")
    try:
        record = json.loads(value.decode("utf-8"), parse_int=Number, parse_float=Number)
    except ValueError as error:
        raise malformed(None, "not JSON") from error
    if not isinstance(record, dict):
        raise malformed(None, "not an object")
    return record


def convert(of, given):
    """Converts a JSON value to the type of a field; a ValueError if it has another form."""
    if of.kind == "string":
        if not isinstance(given, str) or isinstance(given, Number) and not re.fullmatch(r"-?[0-9]+", given):
            raise ValueError("must be a string")
        return str(given)
    if of.kind == "boolean":
        texts = {"true": True, "false": False}
        value = texts.get(given) if isinstance(given, str) and not isinstance(given, Number) else given
        if not isinstance(value, bool):
            raise ValueError("must be true or false")
        return value != of.negated
    if of.kind == "timestamp" and of.format is None or of.format == "rfc3339":
        return instant(given)
    if not isinstance(given, str):
        raise ValueError("must be a number")
    number = Fraction(str(given))
    if of.kind == "decimal":
        micros = round(number * MICRO / 10**of.scale)  # half to even
        if abs(micros) > LARGEST:
            raise ValueError("must be at most 10^12")
        return micros
    if of.kind == "integer":
        if not re.fullmatch(r"[+-]?[0-9]+", given):
            raise ValueError("must be a whole number")
        return int(number)
    if of.kind == "float":
        return float(number)
    ms = (number * Fraction(10) ** UNITS[of.format]).__floor__()
    if not 0 <= ms <= LAST_MS:
        raise ValueError("must be in the years 1970 to 9999")
    return ms


def instant(given):
    if isinstance(given, Number):
        if not re.fullmatch(r"[0-9]+", given):
            raise ValueError("must be whole milliseconds")
        return int(given)
    if not isinstance(given, str):
        raise ValueError("must be a time")
    moment = datetime.datetime.fromisoformat(given)
    if moment.tzinfo is None:
        raise ValueError("must have an offset")
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return since // datetime.timedelta(milliseconds=1)


def degrees(given, limit):
    value = float(given) if isinstance(given, Number) else None
    if value is None or abs(value) > limit:
        raise ValueError("must be degrees")
    return value


def decimal(micros):
    """Formats millionths as a decimal text with all its digits, without trailing zeros."""
    whole, fraction = divmod(abs(micros), MICRO)
    return ("-" if micros < 0 else "") + f"{whole}.{fraction:06}".rstrip("0").rstrip(".")


def rfc3339(ms):
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=ms)
    return moment.isoformat(timespec="milliseconds") + "Z"


def plain(kind, value):
    """Returns the text of a value that is a key, or a part of one."""
    if kind == "boolean":
        return "true" if value else "false"
    return {"decimal": decimal, "timestamp": rfc3339}.get(kind, str)(value)


__all__ = ["Event", "MICRO", "Rejected", "Schema", "decimal", "rfc3339"]
