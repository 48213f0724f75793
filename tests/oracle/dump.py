"""Dumps the tables that an engine wrote to SQLite, or to the directory of a file sink, in the format of compare.py.

    python3 tests/oracle/dump.py results.db actual
    python3 tests/oracle/dump.py results actual

Of a directory only the committed lines count. A keyed table has the last line of each key, and `alert_changes` every
line of an alert.
"""

import argparse
import base64
import hashlib
import json
import sqlite3
import sys
from pathlib import Path

from compare import DECIMALS
from outputs import KEYS

TABLES = {
    "events": "events",
    "alerts": "alerts",
    "windows": "window_aggregates",
    "dead_letters": "dead_letters",
}

FILES = {
    "events": "enriched-events.ndjson",
    "alerts": "alerts.ndjson",
    "windows": "windows.ndjson",
    "dead_letters": "dead-letters.ndjson",
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


def committed_lines(directory, table, committed):
    """Yields the committed lines of a table, parsed; the value of a dead letter is replaced by its hash."""
    length = committed.get(FILES[table], 0)
    if length == 0:
        return
    lines = (directory / FILES[table]).read_bytes()[:length]
    if len(lines) < length or not lines.endswith(b"\n"):
        raise ValueError(f"{FILES[table]} has {len(lines)} of {length} committed bytes, or ends within a line")
    for line in lines.splitlines():
        row = json.loads(line)
        # The texts of decimals, which are exact.
        texts = json.loads(line, parse_float=str)
        row |= {column: texts[column] for column in DECIMALS & row.keys()}
        if table == "dead_letters":
            row.pop("key", None)
            encoded, text = row.pop("value_base64", None), row.pop("value", None)
            value = base64.b64decode(encoded) if encoded is not None else text and text.encode()
            row["value_sha256"] = None if value is None else hashlib.sha256(value).hexdigest()
        yield row


def last_changes(table, lines):
    """Returns the rows that the changes of a keyed table leave. An epoch changes a key once, later epochs later."""
    left, epochs = {}, {}
    for line in lines:
        key = tuple(line[column] for column in KEYS[table])
        if line["epoch"] <= epochs.get(key, -1):
            raise ValueError(f"{table} {key}: epoch {line['epoch']} comes after epoch {epochs[key]}")
        epochs[key] = line["epoch"]
        left[key] = line
    return [line for line in left.values() if not line.get("deleted")]


def tables_of_directory(directory):
    """Returns the rows of each table of a file sink's directory."""
    committed = json.loads((directory / "progress.json").read_text())["committed"]
    lines = {table: list(committed_lines(directory, table, committed)) for table in TABLES}
    return {
        "events": lines["events"],
        "alerts": last_changes("alerts", lines["alerts"]),
        "alert_changes": lines["alerts"],
        "windows": last_changes("windows", lines["windows"]),
        "dead_letters": lines["dead_letters"],
    }


def tables_of_database(path):
    """Returns the rows of each table of a SQLite database."""
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    return {table: rows(database, table) for table in TABLES}


def main():
    parser = argparse.ArgumentParser(prog="dump", description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    read = tables_of_directory if args.results.is_dir() else tables_of_database
    for table, found in read(args.results).items():
        with open(args.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            for row in found:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
