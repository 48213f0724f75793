"""Compares the output of an engine with the oracle's; prints the first differences and exits with 1 if there are any.

    python3 tests/oracle/compare.py expected actual [--tables events alerts windows dead_letters] [--first 10]

Both are directories of NDJSON with rows in the format of outputs.py. An engine's times may also be RFC 3339 texts, its
decimals numbers, its documents parsed, its booleans 0 and 1, and instead of `value_sha256` a dead letter may have its
`value` in base64. Only the columns of the oracle are compared. All values must be equal, except floats: mean and
deviation of windows are compared to 1e-9, values rounded to six digits to 1e-5. Decimals in the details of an alert
are exact. Windows that are not final are ignored; without epochs, so are revoked alerts.
"""

import argparse
import base64
import datetime
import hashlib
import json
import math
import re
import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path

from outputs import KEYS

TIMES = frozenset(("event_time", "start", "end"))
DECIMALS = frozenset(("amount", "amount_sum", "min", "max"))
DOCUMENTS = frozenset(("attributes", "details", "event_ids"))
BOOLEANS = frozenset(("final",))
# Relative tolerances of floats; a value expected to be zero is compared with an absolute tolerance.
TOLERANCES = {"mean": 1e-9, "stddev": 1e-9, "key_amount_mean": 1e-5, "km_from_previous": 1e-5, "details": 1e-5}
NEXT_TO_ZERO = 1e-9
# The decimals in the details of an alert, which are exact.
EXACT = frozenset(("amount", "sum", "value"))


def differences(table, expected, actual):
    """Yields each difference between two iterables of NDJSON lines, as a message."""
    key_columns = KEYS[table]
    remaining = {}
    for line in expected:
        remaining[key_of(key_columns, json.loads(line))] = line
    with_epochs = any("epoch" in json.loads(line) for line in list(remaining.values())[:1])
    seen = set()
    for line in actual:
        row = json.loads(line, parse_float=Decimal)
        if is_ignored(table, row, with_epochs):
            continue
        key = key_of(key_columns, row)
        label = f"{table} {' '.join(map(str, key))}"
        if key in seen:
            yield f"{label}: written twice"
            continue
        seen.add(key)
        if key not in remaining:
            yield f"{label}: not expected: {line.strip()}"
            continue
        for column, wanted in json.loads(remaining.pop(key)).items():
            if column not in row and not (column == "value_sha256" and "value" in row):
                yield f"{label}: has no {column}, expected {wanted!r}"
            elif not same(column, wanted, row):
                yield f"{label}: {column}: expected {wanted!r}, got {row.get(column)!r}"
    for key, line in remaining.items():
        yield f"{table} {' '.join(map(str, key))}: missing: {line.strip()}"


def is_ignored(table, row, with_epochs):
    if table == "windows":
        return not row["final"]
    return table == "alerts" and not with_epochs and row["status"] == "revoked"


def key_of(columns, row):
    return tuple(milliseconds(row[column]) if column in TIMES else row[column] for column in columns)


def same(column, wanted, row):
    if column == "value_sha256" and column not in row:
        value = row["value"]
        return wanted == (None if value is None else hashlib.sha256(base64.b64decode(value)).hexdigest())
    got = row[column]
    if wanted is None or got is None:
        return wanted is got
    if column in TIMES:
        return wanted == milliseconds(got)
    if column in DECIMALS:
        return Decimal(wanted) == Decimal(got)
    if column in BOOLEANS:
        return wanted == bool(got)
    if column in DOCUMENTS:
        return same_document(document(wanted), document(got), TOLERANCES.get(column, 0))
    if column in TOLERANCES:
        return is_close(wanted, got, TOLERANCES[column])
    if isinstance(wanted, float):
        return wanted == float(got)
    return wanted == got


TIME = re.compile(
    r"(-?[0-9]+)-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?(?:Z|\+00(?::00)?)"
)


def milliseconds(time):
    """Converts a time in UTC, in any year, to milliseconds; returns any other value unchanged, so that it differs."""
    match = TIME.fullmatch(time) if isinstance(time, str) else None
    if not match:
        return time
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    # Python supports the years 1 to 9999; the calendar repeats every 400 years, or 146,097 days.
    eras, year = divmod(year, 400)
    days = datetime.date(year + 400, month, day).toordinal() - datetime.date(1970, 1, 1).toordinal()
    days += (eras - 1) * 146_097
    return ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + int(((match[7] or "") + "000")[:3])


def is_close(wanted, got, tolerance):
    return math.isclose(wanted, got, rel_tol=tolerance) or (wanted == 0 and abs(got) <= NEXT_TO_ZERO)


def document(value):
    """Returns a document, given as text or parsed, with its numbers as decimals."""
    return json.loads(value, parse_float=number, parse_int=number) if isinstance(value, str) else decimals(value)


def decimals(value):
    if isinstance(value, dict):
        return {name: decimals(member) for name, member in value.items()}
    if isinstance(value, list):
        return [decimals(member) for member in value]
    return Decimal(str(value)) if type(value) in (int, float) else value


def number(text):
    """Returns the value of a JSON number, or its text if the exponent is too large."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return text


def same_document(wanted, got, tolerance):
    if isinstance(wanted, dict) and isinstance(got, dict):
        names_agree = wanted.keys() == got.keys()
        return names_agree and all(
            same_amount(wanted[name], got[name])
            if tolerance and name in EXACT
            else same_document(wanted[name], got[name], tolerance)
            for name in wanted
        )
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(same_document, wanted, got, [tolerance] * len(got)))
    if tolerance and isinstance(wanted, Decimal) and isinstance(got, Decimal):
        written_as_float = wanted.as_tuple().exponent != 0
        return is_close(wanted, got, tolerance) if written_as_float else wanted == got
    return type(wanted) is type(got) and wanted == got


def same_amount(wanted, got):
    """Compares a decimal of an alert exactly; the oracle writes it as text, since JSON's numbers are read as floats."""
    return isinstance(got, Decimal) and Decimal(str(wanted)) == got


def main():
    parser = argparse.ArgumentParser(prog="compare", description=__doc__.partition("\n\n")[0])
    parser.add_argument("expected", type=Path)
    parser.add_argument("actual", type=Path)
    parser.add_argument("--tables", nargs="+", choices=KEYS, default=["events", "alerts", "windows", "dead_letters"])
    parser.add_argument("--first", type=int, default=10, help="the number of differences to print per table")
    args = parser.parse_args()
    failed = False
    for table in args.tables:
        with (
            open(args.expected / f"{table}.ndjson", encoding="utf-8") as expected,
            open(args.actual / f"{table}.ndjson", encoding="utf-8") as actual,
        ):
            found = 0
            for difference in differences(table, expected, actual):
                found += 1
                if found <= args.first:
                    print(difference)
        print(f"{table}: {found} differences" if found else f"{table}: equal")
        failed = failed or found > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
