"""Bytes in, events or rejections out: the rules of the event format, one by one.

tests/poison/README.md says how each rule is meant; tests/poison/cases.json holds this decoder to it.
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

# What is taken as text if it is a whole number.
IDS = ("event_id", "user_id", "device_id", "merchant_id", "merchant_category", "session_id")

# Texts that no event needs, in the order in which they are judged.
TEXTS = ("currency", "merchant_id", "merchant_category", "ip_address", "session_id")

# The fields that have a meaning, in the order in which they are judged.
FIELDS = (
    "event_id", "event_type", "user_id", "device_id", "event_time", "amount",
    "currency", "merchant_id", "merchant_category", "ip_address", "session_id", "location", "attributes",
)  # fmt: skip

EVENT_TYPES = ("transaction", "user_activity", "iot_sensor", "api_call")


class Rejected(Exception):
    """A record that is no event: `malformed` cannot be read, `invalid` breaks a rule."""

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
    """An object's members, of several with one name the last; `repeated` are the names that came again."""

    repeated = ()


@dataclass(slots=True)
class Event:
    """What a record says. Times are milliseconds since 1970, amounts millionths."""

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
    # Optional fields of a wrong form, which are absent here.
    absent: tuple = ()
    # Where and when it was read; the flow fills these in.
    partition: int = 0
    offset: int = 0
    timestamp: int | None = None
    digest: bytes | None = None
    epoch: int = 0

    @property
    def order(self):
        """The order in which events of a key, or of an epoch, are looked at."""
        return (self.time, self.partition, self.offset)


def decode(value, strict=False):
    """The event in a record's value; raises Rejected. If fields are strict, also for optional ones of a wrong form."""
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
    event_id = fields.need("event_id", lambda given: bounded("event_id", given, 128))
    event_type = fields.need("event_type", known_type)
    user_id, device_id = (fields.text(name) for name in ("user_id", "device_id"))
    kind = "device" if event_type == "iot_sensor" else "user"
    key = device_id if kind == "device" else user_id
    if not key:
        raise invalid(kind + "_id", "the key is missing or empty")
    time = fields.need("event_time", instant)
    amount = fields.read("amount", micros)
    optional = [fields.text(name) for name in TEXTS]
    lat, lon = fields.read("location", degrees) or (None, None)
    kept = fields.attributes(text if len(value) > MAX_ATTRIBUTES else None)
    return Event(
        event_id, event_type, kind, key, time, amount, *optional, device_id, lat, lon, kept, tuple(fields.absent)
    )


class Fields:
    """A record's fields, judged one by one. An optional one of a wrong form is absent, unless fields are strict."""

    def __init__(self, members, strict):
        self.members = dict(members)
        self.strict = strict
        self.absent = []
        key = "device_id" if members.get("event_type") == "iot_sensor" else "user_id"
        self.required = ("event_id", "event_type", "event_time", key)

    def read(self, name, judge):
        """What `judge` makes of a field; none if it is null or absent."""
        given = self.members.get(name)
        if given is None:
            return None
        try:
            return judge(given)
        except Rejected:
            self.give_up(name)
            return None

    def give_up(self, name):
        """Takes a field as absent, or passes on why it is of a wrong form."""
        if self.strict or name in self.required:
            raise
        self.absent.append(name)
        self.members.pop(name, None)

    def need(self, name, judge):
        found = self.read(name, judge)
        if found is None or found == "":
            raise invalid(name, "is missing or empty")
        return found

    def text(self, name):
        return self.read(name, lambda given: bounded(name, given, 256))

    def attributes(self, text):
        """The attributes, in canonical form; `text` is the record's if they may be too large."""
        try:
            if text is not None and attributes_size(text, self.members) > MAX_ATTRIBUTES:
                raise invalid("attributes", "above 64 KiB")
            kept = attributes(self.members)
            check_numbers(kept)
        except Rejected:
            self.give_up("attributes")
            return None
        return None if kept is None else canonical(kept)


# JSON --------------------------------------------------------------------------------------------------------


def parse(text):
    """The members of the one object that a record must be."""
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


def no_constant(name):
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
    object_pairs_hook=collect, parse_int=Number, parse_float=Number, parse_constant=no_constant
)


def depth(text):
    """How deep brackets nest outside of strings; the outermost object is at depth 1."""
    deepest = level = 0
    for token in re.finditer(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|[\[{]|[\]}]', text, re.DOTALL):
        if token[0] in "[{":
            level += 1
            deepest = max(deepest, level)
        elif token[0] in "]}":
            level -= 1
    return deepest


def check_characters(value):
    """Escapes can bring in NUL and halves of surrogate pairs, which no text may hold."""
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
    """A JSON text with sorted names and no white space; numbers stay as they were written."""
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
    """A text of at most so many bytes; of a number, its digits."""
    if size(value) > limit:
        raise invalid(name, f"has more than {limit} bytes")
    return str(value)


def known_type(value):
    if value not in EVENT_TYPES:
        raise invalid("event_type", "unknown")
    return value


def instant(value):
    """An event's time: milliseconds since 1970 as a number, or RFC 3339."""
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
    """Milliseconds since 1970. A leap second, the last of a month in UTC, is the second that follows it."""
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
    """An amount in millionths: digits × 10^(6 − decimals), where the exponent moves the decimal point; half to even."""
    match = NUMBER.fullmatch(text)
    if not match:
        raise invalid("amount", "is not a decimal number")
    sign, whole, fraction, exponent_sign, exponent = match.groups()
    exponent = (exponent or "0").lstrip("0") or "0"
    # No record is long enough for an exponent of more than ten digits to be made up for by decimals.
    exponent = int(exponent[:11]) * (-1 if exponent_sign == "-" else 1)
    decimals = len(fraction or "") - exponent
    digits = (whole + (fraction or "")).lstrip("0")
    if not digits:
        return 0
    # How many digits stand before the point of the amount in millionths: 10^18 has 19.
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
    """Latitude and longitude; `lng` stands for a `lon` that is not there."""
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
    """The attributes, together with the fields that have no meaning; none if there is neither."""
    merged = {name: value for name, value in members.items() if name not in FIELDS}
    own = members.get("attributes")
    if own is None and not merged:
        return None
    return {**merged, **(own or {})}


LARGE_EXPONENT = re.compile(r"[eE][+-]?0*[1-9][0-9]{3}")


def check_numbers(value):
    """Stores hold numbers of limited length: 1,000 characters and an exponent of three digits are within all limits."""
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
    """How many bytes the text of the merged attributes has.

    Without fields to merge that is the attributes' text as it stands. Else it is, in braces and separated by commas,
    the attributes' members as they stand, then `"name":value` for each field that they lack.
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
    """The outermost object's members: name, and name and value as they stand. The text is known to be JSON."""
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
