"""The oracle: reads the whole input of a run, and its bindings, and writes the tables and topics that must have come
of it, straight from the definitions. It shares nothing with the engine.

    python3 tests/oracle --config run.json --records records.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle --config pipeline.toml --files a.ndjson b.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle --config run.json --records records.ndjson --final-only --out expected

Writes events, alerts, alert_changes, windows and dead_letters as NDJSON, a summary to standard output, and what is
wrong with the bindings to standard error. Exit code 1 if anything is.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import config
import flow
import outputs
import records


def arguments():
    parser = argparse.ArgumentParser(prog="oracle", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--config", type=Path, required=True, help="configuration: JSON, or the engine's TOML")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--records", type=Path, help="records as NDJSON, values in base64")
    source.add_argument("--files", type=Path, nargs="+", help="the files of a file source, or their folder")
    epochs = parser.add_mutually_exclusive_group(required=True)
    epochs.add_argument("--bindings", type=Path, help="the bindings that the engine recorded")
    epochs.add_argument("--final-only", action="store_true", help="no epochs: only final answers, nothing is late")
    parser.add_argument("--no-future", action="store_true", help="no event lies in the future")
    parser.add_argument("--emission", choices=("immediate", "final"), help="overrides the patterns' own")
    parser.add_argument("--partitions", type=int, help="how many there are at first, if some are added")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tables")
    return parser.parse_args()


def main():
    asked = arguments()
    settings = config.load(asked.config)
    if asked.partitions is not None:
        settings = dataclasses.replace(settings, partitions=asked.partitions)
    source = records.files(asked.files) if asked.files else records.recorded(asked.records)
    if asked.final_only:
        happened = flow.without_epochs(source, settings)
    else:
        bound = records.bindings(asked.bindings)
        happened = flow.with_bindings(source, bound, settings, judge_future=not asked.no_future)

    asked.out.mkdir(parents=True, exist_ok=True)
    written = {"unbound": happened.unbound}
    for table, rows in outputs.tables(happened, settings, not asked.final_only, asked.emission):
        written[table] = len(rows)
        with open(asked.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    print(json.dumps(written))
    for complaint in happened.complaints:
        print(f"oracle: {complaint}", file=sys.stderr)
    return 1 if happened.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
