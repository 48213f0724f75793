"""Computes with the oracle of the tests the alerts and windows of an input.

    python3 expected.py FILE

Prints as JSON the alerts by rule, a checksum of all alerts (as the loader's `count` makes it), and the windows. No user's results
depend on another user, so parts of the users are judged one after the other, which bounds the memory.
"""

import json
import sys
import zlib
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "oracle"))

import alerts  # noqa: E402
import config  # noqa: E402
import flow  # noqa: E402
import outputs  # noqa: E402
import records  # noqa: E402

PARTS = 12
WINDOW = {"name": "user_1m", "kind": "tumbling", "size_ms": 60_000}


def part(path, wanted):
    """Yields the records of a part of the users."""
    with open(path, "rb") as lines:
        for offset, line in enumerate(lines):
            user = line.partition(b'"user_id":"')[2].partition(b'"')[0]
            if zlib.crc32(user) % PARTS == wanted:
                yield records.Record(0, offset, None, line.rstrip(b"\n"))


def main():
    (path,) = sys.argv[1:]
    settings = config.settings({"pipeline": "peers", "windows": [WINDOW]})
    by_rule, checksum, windows, events = Counter(), 0, 0, 0
    for wanted in range(PARTS):
        admitted = flow.without_epochs(part(path, wanted), settings)
        if admitted.dead_letters:
            sys.exit(f"expected.py: the oracle rejects {len(admitted.dead_letters)} records of {path}")
        events += len(admitted.accepted)
        windows += sum(1 for _ in outputs.window_rows(admitted, settings))
        for change in alerts.changes(admitted, settings, "final"):
            by_rule[change.rule] += 1
            content = "|".join((change.rule, change.match.severity, change.event.key, change.event.event_id))
            checksum += zlib.crc32(content.encode())
    print(json.dumps({"events": events, "by_rule": dict(sorted(by_rule.items())), "checksum": checksum, "windows": windows}))


main()
