"""The decoder: it turns bytes into events or rejections, by the rules of the event format.

tests/poison/README.md explains each rule; tests/poison/cases.json has test cases for this decoder.
"""

import datetime
import json
import re
from dataclasses import dataclass

MAX_RECORD = 1 << 20
MAX_ATTRIBUTES = 64 << 10
MAX_DEPTH = 64
LARGEST_AMOUNT = 10**12 * 10**6
LAST_MS = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z

# Fields in which a whole number is read as text.
IDS = ("event_id", "user_id", "device_id", "merchant_id", "merchant_category", "session_id")

# Optional texts, in the order in which they are checked.
TEXTS = ("currency", "merchant_id", "merchant_category", "ip_address", "session_id")

# The fields of the format, in the order in which they are checked.
FIELDS = (
    "event_id", "event_type", "user_id", "device_id", "event_time", "amount",
    "currency", "merchant_id", "merchant_category", "ip_address", "session_id", "location", "attributes",
)  # fmt: skip

EVENT_TYPES = ("transaction", "user_activity", "iot_sensor", "api_call")


class Rejected(Exception):
    """A record that is not an event: `malformed` cannot be parsed, `invalid` violates a rule."""

    def __init__(self, reason, field, message):
        super().__init__(message)
        self.reason = reason
        self.field = field


def malformed(field, message):
    return Rejected("malformed", field, message)


def invalid(field, message):
    return Rejected("invalid", field, message)


class Number(str):
    """A JSON number, as its text."""


class Members(dict):
    """The members of an object; the last of several members with one name counts, and `repeated` has those names."""

    repeated = ()


@dataclass(slots=True)
class Event:
    """A decoded record. Times are milliseconds since 1970, amounts millionths."""

    event_id: str
    event_type: str
    kind: str
    key: str
    time: int
    amount: int | None
    currency: str | None
    merchant_id: str | None
    merchant_category: str | None
    ip_address: str | None
    session_id: str | None
    device_id: str | None
    lat: float | None
    lon: float | None
    attributes: str | None
    # Malformed optional fields, which are treated as absent.
    absent: tuple = ()
    # Position and epoch of the record, set by the flow.
    partition: int = 0
    offset: int = 0
    timestamp: int | None = None
    digest: bytes | None = None
    epoch: int = 0

    @property
    def order(self):
        """The order in which events of a key, or of an epoch, are processed."""
        return (self.time, self.partition, self.offset)


def decode(value, strict=False):
    """Decodes a record's value or raises Rejected; if `strict`, also for malformed optional fields."""
    if value is None:
        raise malformed(None, "no value")
    if len(value) > MAX_RECORD:
        raise malformed(None, "above 1 MiB")
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise malformed(None, "not UTF-8") from error
    members = parse(text)
    for name in members.repeated:
        if name in FIELDS:
            raise malformed(name, "duplicate field")
    fields = Fields(members, strict)
    for name in FIELDS:
        fields.read(name, lambda given: check_type(name, given))
    event_id = fields.require("event_id", lambda given: bounded("event_id", given, 128))
    event_type = fields.require("event_type", check_event_type)
    user_id, device_id = (fields.text(name) for name in ("user_id", "device_id"))
    kind = "device" if event_type == "iot_sensor" else "user"
    key = device_id if kind == "device" else user_id
    if not key:
        raise invalid(kind + "_id", "the key is missing or empty")
    time = fields.require("event_time", instant)
    amount = fields.read("amount", micros)
    optional = [fields.text(name) for name in TEXTS]
    lat, lon = fields.read("location", degrees) or (None, None)
    kept = fields.attributes(text if len(value) > MAX_ATTRIBUTES else None)
    return Event(
        event_id, event_type, kind, key, time, amount, *optional, device_id, lat, lon, kept, tuple(fields.absent)
    )


class Fields:
    """The fields of a record, checked one by one. A malformed optional field is absent, unless fields are strict."""

    def __init__(self, members, strict):
        self.members = dict(members)
        self.strict = strict
        self.absent = []
        key = "device_id" if members.get("event_type") == "iot_sensor" else "user_id"
        self.required = ("event_id", "event_type", "event_time", key)

    def read(self, name, judge):
        """Returns a field converted by `judge`; none if it is null or absent."""
        given = self.members.get(name)
        if given is None:
            return None
        try:
            return judge(given)
        except Rejected:
            self.mark_absent(name)
            return None

    def mark_absent(self, name):
        """Treats a malformed field as absent, or re-raises its rejection."""
        if self.strict or name in self.required:
            raise
        self.absent.append(name)
        self.members.pop(name, None)

    def require(self, name, judge):
        found = self.read(name, judge)
        if found is None or found == "":
            raise invalid(name, "is missing or empty")
        return found

    def text(self, name):
        return self.read(name, lambda given: bounded(name, given, 256))

    def attributes(self, text):
        """Returns the attributes in canonical form; `text` is the record's text if they may be too large."""
        try:
            if text is not None and attributes_size(text, self.members) > MAX_ATTRIBUTES:
                raise invalid("attributes", "above 64 KiB")
            kept = attributes(self.members)
            check_numbers(kept)
        except Rejected:
            self.mark_absent("attributes")
            return None
        return None if kept is None else canonical(kept)


# JSON --------------------------------------------------------------------------------------------------------


def parse(text):
    """Parses a record, which must be one object, and returns its members."""
    if text.count("{") + text.count("[") > MAX_DEPTH and depth(text) > MAX_DEPTH:
        raise malformed(None, "nests deeper than 64")
    try:
        value = JSON.decode(text)
    except ValueError as error:
        raise malformed(None, f"not JSON: {error}") from error
    if type(value) is not Members:
        raise malformed(None, "not an object")
    if "\\u" in text:
        check_characters(value)
    return value


def reject_constant(name):
    raise ValueError(f"{name} is not JSON")


def collect(pairs):
    members = Members(pairs)
    if len(members) != len(pairs):
        seen, repeated = set(), []
        for name, _ in pairs:
            if name in seen:
                repeated.append(name)
            seen.add(name)
        members.repeated = tuple(repeated)
    return members


JSON = json.JSONDecoder(
    object_pairs_hook=collect, parse_int=Number, parse_float=Number, parse_constant=reject_constant
)


def depth(text):
    """Returns the nesting depth of brackets outside of strings; the outermost object is at depth 1."""
    deepest = level = 0
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{]|[\]}]', text, re.DOTALL):
        if token[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif token[0] in "]}":
            level -= 1
    return deepest


def check_characters(value):
    """Rejects NUL and unpaired surrogates, which escapes can introduce."""
    if isinstance(value, Number):
        return
    if isinstance(value, str):
        if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in value):
            raise malformed(None, "NUL or half a surrogate pair in a string")
    elif isinstance(value, dict):
        for name, member in value.items():
            check_characters(name)
            check_characters(member)
    elif isinstance(value, list):
        for member in value:
            check_characters(member)


def canonical(value):
    """Returns a JSON text with sorted names and no white space; numbers keep their notation."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        members = (f"{canonical(name)}:{canonical(value[name])}" for name in sorted(value))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


# Fields ------------------------------------------------------------------------------------------------------


def check_type(name, value):
    number = isinstance(value, Number)
    if name in ("event_time", "amount"):
        fits = isinstance(value, str)
    elif name in ("location", "attributes"):
        fits = isinstance(value, dict)
    elif name in IDS and number:
        fits = re.fullmatch(r"-?[0-9]+", value)
    else:
        fits = isinstance(value, str) and not number
    if not fits:
        raise malformed(name, "is of the wrong type")


def size(text):
    return len(text.encode("utf-8"))


def bounded(name, value, limit):
    """Returns a text of at most `limit` bytes; a number is returned as its digits."""
    if size(value) > limit:
        raise invalid(name, f"has more than {limit} bytes")
    return str(value)


def check_event_type(value):
    if value not in EVENT_TYPES:
        raise invalid("event_type", "unknown")
    return value


def instant(value):
    """Parses an event's time: milliseconds since 1970 as a number, or RFC 3339."""
    return milliseconds(value) if isinstance(value, Number) else rfc3339(value)


def milliseconds(text):
    if not re.fullmatch(r"-?[0-9]+", text):
        raise invalid("event_time", "is not a whole number")
    if len(text) > 15 or int(text) > LAST_MS:
        raise invalid("event_time", "is outside of the years 1970 to 9999")
    if int(text) < 10**11:
        raise invalid("event_time", "looks like seconds")
    return int(text)


RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})"
    r"(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2}))"
)


def rfc3339(text):
    """Returns milliseconds since 1970. A leap second, at the end of a month in UTC, counts as the next second."""
    match = RFC3339.fullmatch(text)
    if not match:
        raise invalid("event_time", "is not an RFC 3339 time with an offset")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hour, offset_minute = match.groups()[6:]
    offset = 0 if sign is None else int(offset_hour) * 60 + int(offset_minute)
    if sign is not None and (int(offset_hour) > 23 or int(offset_minute) > 59):
        raise invalid("event_time", "has an offset that does not exist")
    try:
        days = datetime.date(year, month, day).toordinal() - EPOCH
    except ValueError as error:
        raise invalid("event_time", "is a day that does not exist, or of the year 0") from error
    if hour > 23 or minute > 59 or second > 60:
        raise invalid("event_time", "is a time of day that does not exist")
    minutes = (days * 24 + hour) * 60 + minute + (offset if sign == "-" else -offset)
    time = minutes * 60_000 + second * 1000 + int(((fraction or "") + "000")[:3])
    if not 0 <= time <= LAST_MS:
        raise invalid("event_time", "is outside of the years 1970 to 9999")
    if second == 60:
        next_day, rest = divmod(minutes + 1, 24 * 60)
        if rest != 0 or datetime.date.fromordinal(next_day + EPOCH).day != 1:
            raise invalid("event_time", "is a leap second that does not exist")
    return time


EPOCH = datetime.date(1970, 1, 1).toordinal()

NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?)([0-9]+))?")


def micros(text):
    """Returns an amount in millionths: digits × 10^(6 − decimals), with the exponent applied, rounded half to even."""
    match = NUMBER.fullmatch(text)
    if not match:
        raise invalid("amount", "is not a decimal number")
    sign, whole, fraction, exponent_sign, exponent = match.groups()
    exponent = (exponent or "0").lstrip("0") or "0"
    # No record has enough decimals to compensate an exponent of more than ten digits.
    exponent = int(exponent[:11]) * (-1 if exponent_sign == "-" else 1)
    decimals = len(fraction or "") - exponent
    digits = (whole + (fraction or "")).lstrip("0")
    if not digits:
        return 0
    # The number of digits before the point of the amount in millionths: 10^18 has 19.
    before = len(digits) + 6 - decimals
    if before > 19:
        raise invalid("amount", "is larger than 10^12")
    if decimals <= 6:
        amount = int(digits) * 10 ** (6 - decimals)
    elif before < 0:
        amount = 0
    else:
        amount, rest = int(digits[:before] or "0"), digits[before:]
        half = "5".ljust(len(rest), "0")
        amount += rest > half or (rest == half and amount % 2 == 1)
    if amount > LARGEST_AMOUNT:
        raise invalid("amount", "is larger than 10^12")
    return -amount if sign else amount


def degrees(location):
    """Returns latitude and longitude; `lng` is read if `lon` is absent."""
    lng = "lng" if location.get("lon") is None and location.get("lng") is not None else "lon"
    read = []
    for name, limit in (("lat", 90), (lng, 180)):
        value = location.get(name)
        if value is None:
            raise invalid("location", f"has no {name}")
        if not isinstance(value, Number):
            raise malformed("location", f"{name} is not a number")
        if not abs(float(value)) <= limit:
            raise invalid("location", f"{name} is beyond {limit} degrees")
        read.append(float(value) + 0.0)  # + 0.0 makes a negative zero positive
    return tuple(read)


def attributes(members):
    """Returns the attributes merged with the unknown fields; none if there are neither."""
    merged = {name: value for name, value in members.items() if name not in FIELDS}
    own = members.get("attributes")
    if own is None and not merged:
        return None
    return {**merged, **(own or {})}


LARGE_EXPONENT = re.compile(r"[eE][+-]?0*[1-9][0-9]{3}")


def check_numbers(value):
    """Rejects numbers beyond the limits of any store: more than 1,000 characters or an exponent above three digits."""
    if isinstance(value, Number):
        if len(value) > 1000 or LARGE_EXPONENT.search(value):
            raise invalid("attributes", "hold a number that stores cannot hold")
    elif isinstance(value, dict):
        for member in value.values():
            check_numbers(member)
    elif isinstance(value, list):
        for member in value:
            check_numbers(member)


def attributes_size(text, members):
    """Returns the number of bytes in the text of the merged attributes.

    Without fields to merge, this is the attributes' original text. Otherwise it has, in braces and separated by commas,
    the attributes' original members, then `"name":value` for each unknown field that is not among them.
    """
    spans = {}
    for name, written_name, written_value in written_members(text):
        spans[name] = (written_name, written_value)
    own = members.get("attributes")
    unknown = [name for name in members if name not in FIELDS]
    if own is None:
        pieces = []
    elif not unknown:
        return size(spans["attributes"][1])
    else:
        pieces = [spans["attributes"][1][1:-1].strip(" \t\r\n")]
    pieces += ["%s:%s" % spans[name] for name in unknown if name not in (own or {})]
    pieces = [piece for piece in pieces if piece]
    return 2 + sum(map(size, pieces)) + max(0, len(pieces) - 1)


def written_members(text):
    """Yields the members of the outermost object of valid JSON: name, and the original text of name and value."""
    space = re.compile(r"[ \t\r\n]*")
    at = text.index("{") + 1
    while True:
        start = space.match(text, at).end()
        if text[start] == "}":
            return
        name, end = JSON.raw_decode(text, start)
        value_start = space.match(text, space.match(text, end).end() + 1).end()
        _, value_end = JSON.raw_decode(text, value_start)
        yield name, text[start:end], text[value_start:value_end]
        at = space.match(text, value_end).end()
        if text[at] == ",":
            at += 1
