"""The cases of tests/poison: the expected outcomes of malformed and unusual records."""

import base64
import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "poison"


def cases():
    return json.loads((FOLDER / "cases.json").read_text(encoding="ascii"))


def value(case):
    """Returns the bytes of a case's value; none for a tombstone."""
    if case["value"] is None:
        return None
    return b"".join(map(part, case["value"]))


def part(piece):
    if "base64" in piece:
        return base64.b64decode(piece["base64"], validate=True)
    return (piece["repeat"] * piece["times"] if "repeat" in piece else piece["text"]).encode("utf-8")
