"""The oracle: reads the whole input of a run and its bindings, and writes the expected tables and topics, computed
directly from the definitions. It shares no code with the engine.

    python3 tests/oracle --config run.json --records records.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle --config pipeline.toml --files a.ndjson b.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle --config run.json --records records.ndjson --final-only --out expected

Writes events, alerts, alert_changes, windows and dead_letters as NDJSON, a summary to standard output, and errors in
the bindings to standard error. The exit code is 1 if there are any errors.
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
    source.add_argument("--files", type=Path, nargs="+", help="the files of a file source, or their directory")
    epochs = parser.add_mutually_exclusive_group(required=True)
    epochs.add_argument("--bindings", type=Path, help="the bindings that the engine recorded")
    epochs.add_argument("--final-only", action="store_true", help="no epochs: only final results, nothing is late")
    parser.add_argument("--no-future", action="store_true", help="do not reject events in the future")
    parser.add_argument("--emission", choices=("immediate", "final"), help="overrides the emission of the patterns")
    parser.add_argument("--partitions", type=int, help="the initial number of partitions, if some are added")
    parser.add_argument("--out", type=Path, required=True, help="directory for the tables")
    return parser.parse_args()


def main():
    args = arguments()
    settings = config.load(args.config)
    if args.partitions is not None:
        settings = dataclasses.replace(settings, partitions=args.partitions)
    source = records.files(args.files) if args.files else records.recorded(args.records)
    if args.final_only:
        result = flow.without_epochs(source, settings)
    else:
        bound = records.bindings(args.bindings)
        result = flow.with_bindings(source, bound, settings, judge_future=not args.no_future)

    args.out.mkdir(parents=True, exist_ok=True)
    written = {"unbound": result.unbound}
    for table, rows in outputs.tables(result, settings, not args.final_only, args.emission):
        written[table] = len(rows)
        with open(args.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n")
    print(json.dumps(written))
    for error in result.errors:
        print(f"oracle: {error}", file=sys.stderr)
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
