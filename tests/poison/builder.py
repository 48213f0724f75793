"""How cases are written down: a valid record and what is done to it."""

import base64

CASES = []

# A valid record, its values as JSON texts. The id is the case's name, so that no case is a duplicate of another.
BASE = {
    "event_type": '"transaction"',
    "user_id": '"u-1"',
    "event_time": '"2026-01-02T03:04:05.678Z"',
    "amount": "12.5",
}
TIME = 1_767_323_045_678


# Without one of these there is no event; device_id is the key of a sensor only, and user_id not of one.
REQUIRED = ("event_id", "event_type", "user_id", "event_time")


def case(name, value, expect, field=None, absent=(), **event):
    """A case of a value: a text, bytes, a list of these and of (text, times), or none. It is `malformed`, `invalid` or
    `valid`; `event` is what it must say then. `absent` has the optional fields of a wrong form and, if fields are
    strict, what the record is for each."""
    if any(name == other["name"] for other in CASES):
        raise ValueError(f"two cases are called {name}")
    value = value if isinstance(value, list) or value is None else [value]
    parts = None if value is None else [part(piece) for piece in value]
    absent = dict(absent)
    CASES.append(
        {"name": name, "value": parts, "expect": expect, "field": field, "absent": absent, "event": event}
    )


def part(piece):
    if isinstance(piece, tuple):
        return {"repeat": piece[0], "times": piece[1]}
    if isinstance(piece, bytes):
        return {"base64": base64.b64encode(piece).decode("ascii")}
    return {"text": piece}


def record(name, changes=(), extra=""):
    """The valid record with some values replaced, or taken out where there is none, and further members."""
    members = {"event_id": f'"{name}"', **BASE, **dict(changes)}
    written = [f'"{field}":{value}' for field, value in members.items() if value is not None]
    return "{" + ",".join(written + ([extra] if extra else [])) + "}"


def quoted(text):
    return f'"{text}"'


def invalid(name, field, value):
    wrong(name, field, value, "invalid")


def mistyped(name, field, value):
    wrong(name, field, value, "malformed")


def wrong(name, field, value, reason):
    """A field of a wrong form, of which an optional one is absent."""
    text = record(name, {field: value})
    if field in REQUIRED:
        case(name, text, reason, field)
    else:
        without(name, text, {field: reason})


def without(name, text, absent, **event):
    """A valid record without the fields that are of a wrong form."""
    names = [("lat", "lon") if field == "location" else (field,) for field in absent if field != "user_id"]
    nothing = dict.fromkeys([name for pair in names for name in pair])
    case(name, text, "valid", absent=absent, event_id=name, **{**nothing, **event})


def valid(name, changes=(), extra="", **event):
    case(name, record(name, changes, extra), "valid", **event)


def unreadable(name, value):
    case(name, value, "malformed")


def not_json_inside(name, text):
    """Broken where an unknown member's value stands."""
    unreadable(name, record(name, extra=f'"x":{text}'))
