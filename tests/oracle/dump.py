"""Dumps the tables that an engine wrote to SQLite, in the format of compare.py.

    python3 tests/oracle/dump.py results.db actual
"""

import argparse
import hashlib
import json
import sqlite3
import sys
from pathlib import Path

TABLES = {
    "events": "events",
    "alerts": "alerts",
    "windows": "window_aggregates",
    "dead_letters": "dead_letters",
}


def rows(database, table):
    """Yields each row of a table by column; bytes are replaced by their hash."""
    found = database.execute(f"SELECT * FROM {TABLES[table]}")
    columns = [column[0] for column in found.description]
    for cells in found:
        row = dict(zip(columns, cells))
        # SQLite stores a decimal twice: as a number, for comparisons, and as its exact text.
        for column in [column for column in columns if column.endswith("_exact")]:
            row[column.removesuffix("_exact")] = row.pop(column)
        if table == "dead_letters":
            del row["key"]
            value = row.pop("value")
            row["value_sha256"] = None if value is None else hashlib.sha256(value).hexdigest()
        yield row


def main():
    parser = argparse.ArgumentParser(prog="dump", description=__doc__.partition("\n\n")[0])
    parser.add_argument("database", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(f"file:{args.database}?mode=ro", uri=True)
    for table in TABLES:
        with open(args.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            for row in rows(database, table):
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
