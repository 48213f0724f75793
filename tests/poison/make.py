"""Makes cases.json: records that are hard to read, and what must become of each. README.md says why.

    python3 tests/poison/make.py
"""

import json
from pathlib import Path

import builder
import fields
import syntax


def text():
    """The whole file, one case a line."""
    builder.CASES.clear()
    for group in (*syntax.GROUPS, *fields.GROUPS):
        group()
    return "[\n" + ",\n".join(json.dumps(case) for case in builder.CASES) + "\n]\n"


if __name__ == "__main__":
    Path(__file__).with_name("cases.json").write_text(text(), encoding="ascii")
