"""Cases of records that are JSON: each field's types and rules, and what is valid though it looks odd."""

import json

from builder import BASE, TIME, case, invalid, mistyped, quoted, record, valid, without

# Beside the type that each field has.
VALUES = {"string": '"x"', "number": "7", "true": "true", "array": "[]", "object": "{}"}
TYPES = {
    **dict.fromkeys(
        ("event_id", "user_id", "device_id", "event_time", "merchant_id", "merchant_category", "session_id"),
        ("string", "number"),
    ),
    "amount": ("string", "number"),
    "location": ("object",),
    "attributes": ("object",),
}
FIELDS = (
    "event_id", "event_type", "user_id", "device_id", "event_time", "amount", "currency", "merchant_id",
    "merchant_category", "ip_address", "session_id", "location", "attributes",
)  # fmt: skip
PLAIN = ("currency", "merchant_id", "merchant_category", "ip_address", "session_id")


def types():
    for field in FIELDS:
        for kind, value in VALUES.items():
            if kind not in TYPES.get(field, ("string",)):
                mistyped(f"{field}-is-of-type-{kind}", field, value)
    mistyped("event-id-in-an-array", "event_id", '["e"]')
    mistyped("amount-in-an-object", "amount", '{"value":1}')
    mistyped("location-as-a-pair", "location", "[48.85,2.35]")
    mistyped("attributes-as-text", "attributes", '"{\\"a\\":1}"')


def numbers_as_text():
    """An id may be a whole number: it is taken digit by digit."""
    for field, says in (("event_id", "event_id"), ("user_id", "key"), ("device_id", "device_id"),
                        ("merchant_id", "merchant_id"), ("merchant_category", "merchant_category"),
                        ("session_id", "session_id")):  # fmt: skip
        for number in ("7", "0", "-0", "-12", "9007199254740993", "18446744073709551615", "1" * 40):
            valid(f"{field}-is-the-number-{number}", {field: number}, **{says: number})
        for number in ("7.0", "0.5", "7e0", "1E3", "-1.5e-2"):
            mistyped(f"{field}-is-the-number-{number}", field, number)
    valid("key-of-a-sensor-is-a-number", {"event_type": '"iot_sensor"', "device_id": "42"}, key_kind="device", key="42")
    valid("user_id-of-256-digits", {"user_id": "1" * 256}, key="1" * 256)
    invalid("user_id-of-257-digits", "user_id", "1" * 257)
    invalid("event_id-of-129-digits", "event_id", "1" * 129)
    invalid("merchant_id-of-257-digits", "merchant_id", "1" * 257)
    for field in ("currency", "ip_address", "event_type"):
        mistyped(f"{field}-is-the-number-978", field, "978")


def repeated():
    for field in FIELDS:
        value = {"location": '{"lat":1,"lon":2}', "attributes": "{}", "event_type": '"transaction"'}.get(field)
        value = value or ('"1"' if field != "event_time" else BASE[field])
        name = f"{field}-twice"
        case(name, record(name, {field: value}, extra=f'"{field}":{value}'), "malformed", field)
    name = "amount-twice-null-first"
    case(name, record(name, {"amount": "null"}, extra='"amount":1'), "malformed", "amount")
    name = "amount-twice-null-last"
    case(name, record(name, extra='"amount":null'), "malformed", "amount")
    name = "user_id-twice-once-escaped"
    case(name, record(name, extra='"user\\u005fid":"u-2"'), "malformed", "user_id")
    name = "event_id-twice-with-all-between"
    case(name, record(name, extra='"event_id":"other"'), "malformed", "event_id")
    name = "first-repetition-is-named"
    case(name, record(name, extra='"user_id":"u","event_id":"e"'), "malformed", "user_id")


def required():
    for field in ("event_id", "event_type", "user_id", "event_time"):
        invalid(f"{field}-missing", field, None)
        invalid(f"{field}-null", field, "null")
        invalid(f"{field}-empty", field, '""')
    sensor = {"event_type": '"iot_sensor"'}
    for name, changes in {
        "missing": {},
        "null": {"device_id": "null"},
        "empty": {"device_id": '""'},
        "of-257-bytes": {"device_id": quoted("d" * 257)},
    }.items():
        name = f"device_id-{name}"
        case(name, record(name, {**sensor, **changes}), "invalid", "device_id")
    case("empty-object", "{}", "invalid", "event_id")
    case("unknown-fields-only", '{"a":1,"b":[2]}', "invalid", "event_id")
    case("names-in-capitals", record("x").upper().replace("X", "x"), "invalid", "event_id")
    for name, value in {
        "unknown": "refund",
        "in-capitals": "TRANSACTION",
        "with-a-space": "transaction ",
        "with-a-hyphen": "api-call",
        "with-an-ideograph": "\u4e8b",
    }.items():
        invalid(f"event_type-{name}", "event_type", quoted(value))


def lengths():
    invalid("event_id-of-129-bytes", "event_id", quoted("e" * 129))
    invalid("event_id-of-65-letters-in-130-bytes", "event_id", quoted("\u00e9" * 65))
    invalid("event_id-of-65-escapes-in-130-bytes", "event_id", '"' + "\\u00e9" * 65 + '"')
    invalid("user_id-of-257-bytes", "user_id", quoted("u" * 257))
    invalid("user_id-of-86-letters-in-258-bytes", "user_id", quoted("\u20ac" * 86))
    for field in PLAIN:
        invalid(f"{field}-of-257-bytes", field, quoted("x" * 257))
    invalid("device_id-of-257-bytes-that-is-no-key", "device_id", quoted("d" * 257))
    name = "currency-of-a-hundred-thousand-bytes"
    start, end = record(name, {"currency": "<>"}).split("<>")
    without(name, [start, '"', ("x", 100_000), '"', end], {"currency": "invalid"})
    for name, value, event_id in (
        ("event_id-of-128-bytes", "e" * 128, "e" * 128),
        ("event_id-of-64-letters-in-128-bytes", "\u00e9" * 64, "\u00e9" * 64),
        ("event_id-of-64-escapes-in-128-bytes", "\\u00ea" * 64, "\u00ea" * 64),
        ("event_id-of-32-escaped-pairs-in-128-bytes", "\\ud834\\udd1e" * 32, "\U0001d11e" * 32),
        ("event_id-of-one-byte", "e", "e"),
        ("event_id-of-a-space", " ", " "),
    ):
        valid(name, {"event_id": quoted(value)}, event_id=event_id)
    valid("user_id-of-256-bytes", {"user_id": quoted("u" * 256)}, key="u" * 256)
    for field in (*PLAIN, "device_id"):
        valid(f"{field}-of-256-bytes", {field: quoted("x" * 256)}, **{field: "x" * 256})
        valid(f"{field}-empty-is-valid", {field: '""'}, **{field: ""})


def times():
    for name, value in {
        "a-word": "yesterday",
        "a-date": "2026-01-02",
        "without-offset": "2026-01-02T03:04:05",
        "without-seconds": "2026-01-02T03:04Z",
        "with-two-spaces": "2026-01-02  03:04:05Z",
        "with-an-underscore": "2026-01-02_03:04:05Z",
        "in-basic-form": "20260102T030405Z",
        "as-a-week": "2026-W01-5T03:04:05Z",
        "with-one-digit-of-month": "2026-1-02T03:04:05Z",
        "with-a-two-digit-year": "26-01-02T03:04:05Z",
        "month-0": "2026-00-02T03:04:05Z",
        "month-13": "2026-13-02T03:04:05Z",
        "day-0": "2026-01-00T03:04:05Z",
        "day-32": "2026-01-32T03:04:05Z",
        "june-31": "2026-06-31T03:04:05Z",
        "february-29-of-a-common-year": "2026-02-29T03:04:05Z",
        "february-29-of-2100": "2100-02-29T03:04:05Z",
        "hour-24": "2026-01-02T24:00:00Z",
        "minute-60": "2026-01-02T03:60:00Z",
        "leap-second-in-the-month": "2016-12-30T23:59:60Z",
        "leap-second-in-the-day": "2016-12-31T22:59:60Z",
        "leap-second-of-its-offset-alone": "2016-12-31T23:59:60+01:00",
        "second-61": "2016-12-31T23:59:61Z",
        "leap-second-after-9999": "9999-12-31T23:59:60Z",
        "fraction-without-digits": "2026-01-02T03:04:05.Z",
        "fraction-after-a-comma": "2026-01-02T03:04:05,5Z",
        "two-fractions": "2026-01-02T03:04:05.5.5Z",
        "offset-24-hours": "2026-01-02T03:04:05+24:00",
        "offset-60-minutes": "2026-01-02T03:04:05+01:60",
        "offset-of-three-digits": "2026-01-02T03:04:05+010",
        "offset-of-five-digits": "2026-01-02T03:04:05+01000",
        "offset-60-minutes-without-colon": "2026-01-02T03:04:05+0160",
        "offset-of-hours-alone": "2026-01-02T03:04:05+01",
        "offset-with-a-true-minus": "2026-01-02T03:04:05\u221201:00",
        "named-zone": "2026-01-02T03:04:05Z[UTC]",
        "two-offsets": "2026-01-02T03:04:05Z+01:00",
        "leading-space": " 2026-01-02T03:04:05Z",
        "trailing-space": "2026-01-02T03:04:05Z ",
        "trailing-newline": "2026-01-02T03:04:05Z\\n",
        "plus-in-the-year": "+2026-01-02T03:04:05Z",
        "arabic-digits": "\u0662026-01-02T03:04:05Z",
        "milliseconds-as-text": "1767323045678",
        "year-0": "0000-01-01T00:00:00Z",
        "year-1969": "1969-12-31T23:59:59.999Z",
        "year-10000": "10000-01-01T00:00:00Z",
        "before-1970-by-its-offset": "1970-01-01T00:30:00+01:00",
        "after-9999-by-its-offset": "9999-12-31T23:30:00-01:00",
    }.items():
        invalid(f"event_time-{name}", "event_time", quoted(value))
    for name, value in {
        "in-seconds": "1772330400",
        "zero": "0",
        "minus-zero": "-0",
        "just-below-10-to-the-11th": "99999999999",
        "just-above-minus-10-to-the-11th": "-99999999999",
        "with-a-fraction": "1767323045678.5",
        "with-a-fraction-of-zero": "1767323045678.0",
        "with-an-exponent": "17e11",
        "before-1970": "-1",
        "after-9999": "253402300800000",
        "beyond-64-bits": "9223372036854775808",
        "that-wraps-to-zero": "18446744073709551616",
        "of-a-hundred-digits": "1" * 100,
        "beyond-a-double": "1e999",
    }.items():
        invalid(f"event_time-number-{name}", "event_time", value)
    for name, value, time in (
        ("lower-case", '"2026-01-02t03:04:05.678z"', TIME),
        ("escaped", '"2026\\u002d01-02T03:04:05.678Z"', TIME),
        ("offset-east", '"2026-01-02T04:34:05.678+01:30"', TIME),
        ("offset-west-across-midnight", '"2026-01-01T23:04:05.678-04:00"', TIME),
        ("offset-of-minus-zero", '"2026-01-02T03:04:05.678-00:00"', TIME),
        ("offset-of-almost-a-day", '"2026-01-03T03:03:05.678+23:59"', TIME),
        ("with-a-space", '"2026-01-02 03:04:05.678Z"', TIME),
        ("offset-without-colon", '"2026-01-02T04:34:05.678+0130"', TIME),
        ("with-a-space-and-an-offset-without-colon", '"2026-01-01 23:04:05.678-0400"', TIME),
        ("leap-second", '"2016-12-31T23:59:60Z"', 1_483_228_800_000),
        ("leap-second-of-june", '"2015-06-30T23:59:60.25Z"', 1_435_708_800_250),
        ("leap-second-of-another-offset", '"1990-12-31T15:59:60-08:00"', 662_688_000_000),
        ("without-fraction", '"2026-01-02T03:04:05Z"', TIME - 678),
        ("one-digit-of-fraction", '"2026-01-02T03:04:05.6Z"', TIME - 78),
        ("finer-digits-are-dropped", '"2026-01-02T03:04:05.67899999999999999999Z"', TIME),
        ("february-29", '"2024-02-29T00:00:00Z"', 1_709_164_800_000),
        ("february-29-of-2000", '"2000-02-29T00:00:00Z"', 951_782_400_000),
        ("first-moment", '"1970-01-01T00:00:00Z"', 0),
        ("first-moment-and-less-than-a-millisecond", '"1970-01-01T00:00:00.0009Z"', 0),
        ("first-moment-said-in-1969", '"1969-12-31T23:00:00-01:00"', 0),
        ("last-moment", '"9999-12-31T23:59:59.999Z"', 253_402_300_799_999),
        ("whole-number", "1767323045678", TIME),
        ("first-whole-number", "100000000000", 100_000_000_000),
        ("last-whole-number", "253402300799999", 253_402_300_799_999),
    ):
        valid(f"event_time-{name}", {"event_time": value}, event_time=time)


def amounts():
    for name, value in {
        "above-the-largest-and-not-rounded-to-it": "1000000000000.00000050000001",
        "above-the-largest": "1000000000000.000001",
        "below-the-least": "-1000000000000.000001",
        "above-by-one": "1000000000001",
        "above-by-exponent": "1e13",
        "beyond-64-bits": "9223372036854775808",
        "beyond-64-bits-in-millionths": "18446744073709.551616",
        "beyond-a-double": "1e999",
        "beyond-a-double-downwards": "-1e999",
        "of-a-thousand-digits": "9" * 1000,
        "with-an-exponent-beyond-64-bits": "1e99999999999999999999",
        "with-an-exponent-that-wraps": "1e18446744073709551616",
    }.items():
        invalid(f"amount-{name}", "amount", value)
    for name, value in {
        "empty": "",
        "space": " ",
        "word": "free",
        "NaN": "NaN",
        "infinity": "Infinity",
        "plus-sign": "+1",
        "leading-space": " 1",
        "trailing-space": "1 ",
        "trailing-newline": "1\\n",
        "leading-zero": "01",
        "leading-point": ".5",
        "trailing-point": "1.",
        "decimal-comma": "1,50",
        "thousands": "1,000.00",
        "currency-sign": "$1",
        "currency": "1 EUR",
        "two-points": "1.2.3",
        "two-minuses": "--1",
        "true-minus": "\u22121",
        "hexadecimal": "0x1f",
        "underscore": "1_000",
        "exponent-without-digits": "1e",
        "full-width-digits": "\uff11\uff12",
        "null": "null",
        "too-large": "1e13",
    }.items():
        invalid(f"amount-text-{name}", "amount", quoted(value))
    million = 1_000_000
    for name, value, micros in (
        ("negative", "-12.5", -12_500_000),
        ("zero", "0", 0),
        ("minus-zero", "-0", 0),
        ("minus-zero-with-decimals", "-0.000000", 0),
        ("zero-with-any-exponent", "0e999999999999999999999", 0),
        ("least", "0.000001", 1),
        ("least-by-exponent", "1e-6", 1),
        ("no-double-has-it", "0.1", 100_000),
        ("that-a-double-would-round", "999999999999.999999", 999_999_999_999_999_999),
        ("largest", "1000000000000", 10**18),
        ("largest-with-decimals", "1000000000000.000000", 10**18),
        ("largest-by-exponent", "1E+12", 10**18),
        ("largest-negative", "-1e12", -(10**18)),
        ("exponent", "1e3", 1000 * million),
        ("exponent-with-leading-zeros", "1e0003", 1000 * million),
        ("exponent-of-zero", "1.5e0", 1_500_000),
        ("seven-decimals-and-one-made-up-for", "1.0000001e1", 10_000_001),
        ("of-a-float", "1.1400000000000001", 1_140_000),
        ("of-a-sum-of-floats", "0.30000000000000004", 300_000),
        ("seven-decimals-of-zeros", "12.5000000", 12_500_000),
        ("seven-decimals-of-nothing", "0e-7", 0),
        ("seven-decimals-by-exponent", "1e-7", 0),
        ("eight-decimals-and-one-made-up-for", "1.00000000e1", 10 * million),
        ("half-of-the-least", "0.0000005", 0),
        ("half-of-the-least-by-exponent", "5e-7", 0),
        ("more-than-half-of-the-least", "0.00000050000000000000000000000000000000000000001", 1),
        ("less-than-half-of-the-least", "0.00000049999999999999999999999999999999999999999", 0),
        ("half-that-rounds-up-to-even", "0.0000015", 2),
        ("half-that-rounds-down-to-even", "0.0000025", 2),
        ("negative-half-that-rounds-to-even", "-0.0000035", -4),
        ("negative-half-of-the-least", "-0.0000005", 0),
        ("nine-that-carry", "0.9999999", million),
        ("a-tenth-of-a-half", "5e-8", 0),
        ("digits-all-beyond-the-sixth", "99e-9", 0),
        ("that-rounds-to-the-largest", "999999999999.9999995", 10**18),
        ("largest-and-half-of-the-least", "1000000000000.0000005", 10**18),
        ("beneath-a-double", "1e-999", 0),
        ("with-an-exponent-beyond-64-bits-downwards", "1e-99999999999999999999", 0),
        ("text-with-seven-decimals", '"1.0000001"', million),
        ("text", '"12.5"', 12_500_000),
        ("text-with-trailing-zeros", '"1.50"', 1_500_000),
        ("text-with-exponent", '"-1.5E-2"', -15_000),
        ("text-escaped", '"\\u0031\\u002e5"', 1_500_000),
        ("null", "null", None),
        ("missing", None, None),
    ):
        valid(f"amount-{name}-is-valid", {"amount": value}, amount=micros)
    name = "amount-of-many-zeros-that-its-exponent-makes-up-for"
    start, end = record(name, {"amount": "<>"}).split("<>")
    case(name, [start, "0.", ("0", 999_999), "1e1000000", end], "valid", amount=million)
    name = "amount-of-many-more-zeros-that-its-exponent-makes-up-for"
    start, end = record(name, {"amount": "<>"}).split("<>")
    case(name, [start, "0.", ("0", 1_010_000), "1e1010001", end], "valid", amount=million)


def locations():
    for name, value in {
        "empty": "{}",
        "without-lat": '{"lon":2.35}',
        "without-lon": '{"lat":48.85}',
        "with-lat-null": '{"lat":null,"lon":2.35}',
        "with-lon-null": '{"lat":48.85,"lon":null}',
        "with-other-names": '{"latitude":48.85,"longitude":2.35}',
        "with-both-null": '{"lat":null,"lon":null}',
        "with-lng-null": '{"lat":48.85,"lng":null}',
        "with-lng-181": '{"lat":0,"lng":181}',
        "with-lng-and-lon-181": '{"lat":0,"lng":2.35,"lon":181}',
        "as-geojson": '{"type":"Point","coordinates":[2.35,48.85]}',
        "with-lat-91": '{"lat":91,"lon":0}',
        "with-lat-just-above": '{"lat":90.00000000001,"lon":0}',
        "with-lat-just-below": '{"lat":-90.00000000001,"lon":0}',
        "with-lon-181": '{"lat":0,"lon":181}',
        "with-lon-360": '{"lat":0,"lon":360}',
        "with-lon-just-below": '{"lat":0,"lon":-180.00000000001}',
        "beyond-a-double": '{"lat":1e999,"lon":0}',
        "beyond-a-double-downwards": '{"lat":0,"lon":-1e999}',
        "swapped": '{"lat":151.2,"lon":-33.8}',
    }.items():
        invalid(f"location-{name}", "location", value)
    for name, value in {
        "with-lat-a-string": '{"lat":"48.85","lon":2.35}',
        "with-lon-a-string": '{"lat":48.85,"lon":"2.35"}',
        "with-lng-a-string": '{"lat":48.85,"lng":"2.35"}',
        "with-lat-true": '{"lat":true,"lon":2.35}',
        "with-lat-an-array": '{"lat":[48.85],"lon":2.35}',
        "with-lon-an-object": '{"lat":48.85,"lon":{}}',
    }.items():
        mistyped(f"location-{name}", "location", value)
    for name, value, lat, lon in (
        ("at-the-limits", '{"lat":90,"lon":-180}', 90.0, -180.0),
        ("at-the-other-limits", '{"lat":-90.0,"lon":1.8e2}', -90.0, 180.0),
        ("of-minus-zeros", '{"lat":-0,"lon":-0.0}', 0.0, 0.0),
        ("beneath-a-double", '{"lat":1e-999,"lon":-1e-999}', 0.0, 0.0),
        ("with-more", '{"lat":1.5,"lon":2.5,"accuracy":"low","lat2":[]}', 1.5, 2.5),
        ("with-an-escaped-name", '{"l\\u0061t":1.5,"lon":2.5}', 1.5, 2.5),
        ("whose-last-lat-counts", '{"lat":"x","lat":1.5,"lon":2.5}', 1.5, 2.5),
        ("of-many-digits", f'{{"lat":0.{"1" * 400},"lon":2.5}}', 1 / 9, 2.5),
        ("with-lng", '{"lat":1.5,"lng":2.5}', 1.5, 2.5),
        ("with-lng-and-lon", '{"lng":3.5,"lat":1.5,"lon":2.5}', 1.5, 2.5),
        ("with-lng-and-lon-null", '{"lat":1.5,"lon":null,"lng":2.5}', 1.5, 2.5),
        ("null", "null", None, None),
    ):
        valid(f"location-{name}-is-valid", {"location": value}, lat=lat, lon=lon)


def attributes():
    given = '{"a":1.0,"b":[true,null,"x"],"c":{"d":{}}}'
    valid("attributes-stay-as-they-are", {"attributes": given}, attributes=given)
    valid("attributes-empty", {"attributes": "{}"}, attributes="{}")
    valid("attributes-null", {"attributes": "null"}, attributes=None)
    valid("attributes-with-names-of-fields", {"attributes": '{"amount":[],"event_id":7}'},
          attributes='{"amount":[],"event_id":7}', amount=12_500_000)  # fmt: skip
    valid("attributes-with-a-number-of-many-digits", {"attributes": f'{{"a":{"7" * 300}}}'},
          attributes=f'{{"a":{"7" * 300}}}')  # fmt: skip
    valid("attributes-with-a-name-twice", {"attributes": '{"a":1,"a":2}'}, attributes='{"a":2}')
    valid("unknown-fields-are-kept", extra='"x":1,"y":[{"z":null}]', attributes='{"x":1,"y":[{"z":null}]}')
    valid("unknown-null-is-kept", extra='"x":null', attributes='{"x":null}')
    valid("unknown-field-with-an-empty-name-is-kept", extra='"":1', attributes='{"":1}')
    valid("unknown-fields-join-attributes", {"attributes": ' { "a" : 1 } '}, '"x":2', attributes='{"a":1,"x":2}')
    valid("unknown-fields-join-empty-attributes", {"attributes": "{ }"}, '"x":2', attributes='{"x":2}')
    valid("attributes-win", {"attributes": '{"x":1}'}, '"x":2', attributes='{"x":1}')
    valid("attributes-win-with-null", {"attributes": '{"x":null}'}, '"x":2', attributes='{"x":null}')
    valid("attributes-win-by-escaped-name", {"attributes": '{"\\u0078":1}'}, '"x":2', attributes='{"x":1}')
    valid("last-of-unknown-fields-wins", extra='"x":1,"y":0,"x":2', attributes='{"x":2,"y":0}')
    valid("last-of-unknown-fields-wins-by-escaped-name", extra='"x":1,"\\u0078":2', attributes='{"x":2}')
    valid("names-differ-by-case", extra='"Amount":"x","USER_ID":7', attributes='{"Amount":"x","USER_ID":7}')


def numbers_that_stores_cannot_hold():
    """PostgreSQL's numeric, which jsonb is made of, ends at 131,072 digits and at 16,383 decimals."""
    large = {
        "1e131072": "1e131072",
        "1e-16384": "1e-16384",
        "zero-with-decimals": "0e-99999",
        "of-17000-decimals": f"0.{'1' * 17_000}",
        "of-1001-digits": "1" * 1001,
        "with-an-exponent-of-1000": "1e1000",
        "with-an-exponent-beyond-64-bits": "-1E+18446744073709551616",
    }
    for name, number in large.items():
        invalid(f"attributes-number-{name}", "attributes", f'{{"a":[{{"b":{number}}}]}}')
        name = f"unknown-number-{name}"
        without(name, record(name, extra=f'"x":[{number}]'), {"attributes": "invalid"})
    for name, number in {
        "of-1000-digits": "1" * 1000,
        "beyond-a-double": "1e999",
        "beneath-a-double": "-1e-999",
        "with-leading-zeros-in-its-exponent": "1e00001",
        "in-a-text": '"1e131072"',
    }.items():
        text = f'{{"a":{number}}}'
        valid(f"attributes-number-{name}-is-kept", {"attributes": text}, attributes=text)


def odd_but_valid():
    sensor = {"event_type": '"iot_sensor"', "user_id": None, "device_id": '"d-1"'}
    valid("sensor-is-keyed-by-its-device", sensor, key_kind="device", key="d-1", device_id="d-1")
    valid("sensor-with-a-user-is-keyed-by-its-device", {**sensor, "user_id": '"u-1"'}, key_kind="device", key="d-1")
    valid("sensor-with-an-empty-user", {**sensor, "user_id": '""'}, key_kind="device", key="d-1")
    user = {"device_id": '"d-1"'}
    valid("user-with-a-device-is-keyed-by-its-user", user, key_kind="user", key="u-1", device_id="d-1")
    for kind in ("user_activity", "api_call"):
        valid(f"type-{kind}", {"event_type": quoted(kind)}, event_type=kind, key_kind="user", key="u-1")
    valid("type-escaped", {"event_type": '"api\\u005fcall"'}, event_type="api_call")
    text = '"\\u00e9\\n\\"\\\\\\/\\b\\f\\r\\t\\ud834\\udd1e\\uFFFF"'
    valid("escapes-in-the-key", {"user_id": text}, key=json.loads(text))
    letters = "a\u00e9\u20ac\U0001d11e\U0010ffff"
    valid("letters-of-all-sizes", {"currency": quoted(letters)}, currency=letters)
    valid("delete-character", {"currency": '"\x7f\u0080"'}, currency="\x7f\u0080")
    valid("bom-inside-a-string", {"currency": '"\ufeff"'}, currency="\ufeff")
    valid("backslash-then-u0000", {"currency": '"\\\\u0000"'}, currency="\\u0000")
    valid("backslash-then-ud800", {"currency": '"\\\\ud800"'}, currency="\\ud800")
    valid("sql-in-a-string", {"user_id": "\"'; DROP TABLE events; --\""}, key="'; DROP TABLE events; --")
    valid("copy-marks-in-a-string", {"currency": '"\\\\.\\t\\\\N"'}, currency="\\.\t\\N")
    name = "name-escaped"
    case(name, record(name).replace("event_id", "\\u0065vent_id"), "valid", event_id=name)
    name = "white-space-everywhere"
    spaced = record(name).replace(":", " :\n", 1).replace(",", "\r\n,\t").replace("{", " {\n").replace("}", "\t} \n")
    case(name, spaced, "valid", event_id=name)
    name = "carriage-return-at-the-end"
    case(name, record(name) + "\r", "valid", event_id=name)
    name = "fields-in-another-order"
    members = json.loads(record(name))
    case(name, json.dumps(dict(reversed(members.items()))), "valid", event_id=name, amount=12_500_000)
    optional = (*PLAIN, "device_id", "amount", "attributes")
    nulls = dict.fromkeys((*optional, "location"), "null")
    valid("nulls-for-all-that-is-optional", nulls, **dict.fromkeys((*optional, "lat", "lon")))


def several_faults():
    name = "all-that-is-optional-is-wrong"
    wrong = {"device_id": "true", "amount": '"free"', "location": "{}", "attributes": "[]", **dict.fromkeys(PLAIN, "{}")}
    invalid = dict.fromkeys(("amount", "location"), "invalid")
    without(name, record(name, wrong, extra='"x":1'), {**dict.fromkeys(wrong, "malformed"), **invalid}, key="u-1",
            attributes='{"x":1}')  # fmt: skip
    sensor = {"event_type": '"iot_sensor"', "device_id": '"d-1"'}
    for name, user, reason in (("a-list", "[]", "malformed"), ("too-long", quoted("u" * 257), "invalid")):
        name = f"user_id-of-a-sensor-is-{name}"
        without(name, record(name, {**sensor, "user_id": user}), {"user_id": reason}, key="d-1", key_kind="device")
    name = "device_id-of-a-sensor-is-a-list"
    case(name, record(name, {**sensor, "device_id": "[]"}), "malformed", "device_id")
    name = "type-of-a-sensor-escaped-and-its-device-a-list"
    case(name, record(name, {"event_type": '"iot\\u005fsensor"', "device_id": "[]"}), "malformed", "device_id")
    name = "broken-json-behind-a-broken-rule"
    case(name, record(name, {"amount": "1e999"})[:-1], "malformed")
    name = "broken-json-behind-a-repeated-field"
    case(name, record(name, extra='"amount":1')[:-1], "malformed")
    name = "repeated-field-behind-a-wrong-type"
    case(name, record(name, {"currency": "7"}, extra='"amount":1'), "malformed", "amount")
    name = "wrong-type-behind-a-broken-rule"
    case(name, record(name, {"event_time": '"x"', "user_id": "[]"}), "malformed", "user_id")
    name = "broken-rule-and-an-optional-field-of-a-wrong-type"
    case(name, record(name, {"event_type": '"x"', "currency": "7"}), "invalid", "event_type")
    name = "missing-field-and-wrong-type"
    case(name, record(name, {"event_time": "[]", "event_type": None}), "malformed", "event_time")
    name = "missing-field-and-an-optional-one-of-a-wrong-type"
    case(name, record(name, {"event_time": None, "attributes": "[]"}), "invalid", "event_time")
    name = "two-broken-rules"
    case(name, record(name, {"amount": "1e999", "event_type": '"x"'}), "invalid", "event_type")


GROUPS = (
    types, numbers_as_text, repeated, required, lengths, times, amounts, locations, attributes, numbers_that_stores_cannot_hold,
    odd_but_valid, several_faults,
)  # fmt: skip
