"""Tests of the commands, from files to files."""

import base64
import json
import sqlite3
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import config
from fixtures import value

HERE = Path(__file__).resolve().parent

TOML = """
pipeline = "fraud"
[source]
kind = "file"
paths = ["ignored"]
[time]
epoch = "10ms"
max_out_of_orderness = "1s"
[limits]
dedup_horizon = "0s"
[[windows]]
name = "7d"
kind = "sliding"
size = "1m"
slide = "30s"
[patterns.velocity_spike]
more_than = 1
within = "1h"
emit = "final"
[patterns.amount_anomaly]
sigmas = 2.5
"""


class Configuration(unittest.TestCase):
    def test_toml_and_json_give_the_same_settings(self):
        with tempfile.TemporaryDirectory() as folder:
            toml, as_json = Path(folder, "a.toml"), Path(folder, "a.json")
            toml.write_text(TOML)
            as_json.write_text(json.dumps({
                "pipeline": "fraud", "time": {"max_out_of_orderness_ms": 1000}, "dedup_horizon_ms": 0,
                "source": {"kind": "file"},
                "windows": [{"name": "7d", "kind": "sliding", "size_ms": 60_000, "slide_ms": 30_000}],
                "patterns": {
                    "velocity_spike": {"at_least": 2, "within_ms": 3_600_000, "emit": "final"},
                    "amount_anomaly": {"sigmas": 2.5},
                },
            }))  # fmt: skip
            self.assertEqual(config.load(toml), config.load(as_json))

    def test_defaults_are_those_of_the_format_and_all_patterns_run(self):
        settings = config.settings({"pipeline": "p"})
        self.assertEqual(
            (settings.max_out_of_orderness, settings.max_future_skew, settings.dedup_horizon),
            (5000, 300_000, 60_000),
        )
        self.assertEqual(len(settings.patterns), 5)
        self.assertEqual(settings.patterns["velocity_spike"]["at_least"], 101)
        self.assertEqual(settings.patterns["rapid_fire_burst"]["at_least"], 10)

    def test_misspelt_settings_are_refused(self):
        for given in (
            {"patterns": {"velocity_spike": {"more_then": 1}}},
            {"patterns": {"velocity_spikes": {}}},
            {"patterns": {"velocity_spike": {"emit": "later"}}},
            {"windows": [{"name": "w", "kind": "tumbling"}]},
            {"windows": [{"name": "w", "kind": "session", "gap_ms": 1, "by": "user"}]},
        ):
            with self.subTest(given), self.assertRaises((ValueError, KeyError)):
                config.settings({"pipeline": "p", **given})


class Commands(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.write("run.json", json.dumps({
            "pipeline": "p", "time": {"max_out_of_orderness_ms": 0}, "patterns": {},
            "windows": [{"name": "w", "kind": "tumbling", "size_ms": 1000}],
        }))  # fmt: skip

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def run_script(self, script, *arguments):
        return subprocess.run(
            [sys.executable, HERE / script, *arguments], cwd=self.folder, capture_output=True, text=True, check=False
        )

    def store(self, table, rows, columns=None):
        """Creates a table of results.db."""
        columns = columns or list(rows[0])
        named, marks = ", ".join(f'"{column}"' for column in columns), ", ".join("?" * len(columns))
        database = sqlite3.connect(self.folder / "results.db")
        with database:
            database.execute(f"CREATE TABLE {table} ({named})")
            database.executemany(f"INSERT INTO {table} VALUES ({marks})", [tuple(row.values()) for row in rows])
        database.close()

    def oracle(self, *arguments):
        return self.run_script("", "--config", "run.json", *arguments, "--out", "expected")

    def rows(self, table):
        return [json.loads(line) for line in (self.folder / "expected" / f"{table}.ndjson").read_text().splitlines()]

    def bindings(self, **changes):
        partitions = [{"partition": 0, "end": 2, "timestamp": 1000, "max_event_time": 2000, "idle": False}]
        bound = {"epoch": 5, "wall_ms": 9000, "partitions": partitions, "watermark": 1999, **changes}
        self.write("bindings.ndjson", json.dumps(bound) + "\n" + json.dumps({"epoch": 6, "close": True}) + "\n")

    def recorded(self):
        values = [base64.b64encode(value(1)).decode(), base64.b64encode(value(2000, "f")).decode(), None]
        lines = [
            {"partition": 0, "offset": offset, "timestamp": 900 + 100 * offset, "key": None, "value": value}
            for offset, value in enumerate(values)
        ]
        self.write("records.ndjson", "".join(json.dumps(line) + "\n" for line in lines))

    def test_records_and_bindings_become_tables(self):
        self.recorded()
        self.bindings()
        ran = self.oracle("--records", "records.ndjson", "--bindings", "bindings.ndjson")
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))
        self.assertEqual(
            json.loads(ran.stdout),
            {"unbound": 1, "events": 2, "alerts": 0, "alert_changes": 0, "windows": 2, "dead_letters": 0},
        )
        self.assertEqual([(row["offset"], row["epoch"]) for row in self.rows("events")], [(0, 5), (1, 5)])
        self.assertEqual([(row["start"], row["epoch"]) for row in self.rows("windows")], [(0, 5), (2000, 6)])

    def test_bindings_that_contradict_the_input_fail(self):
        self.recorded()
        self.bindings(watermark=2000)
        ran = self.oracle("--records", "records.ndjson", "--bindings", "bindings.ndjson")
        self.assertEqual(ran.returncode, 1)
        self.assertIn("W is 1999", ran.stderr)

    def test_every_line_of_a_file_is_a_record(self):
        (self.folder / "in").mkdir()
        (self.folder / "in" / "b").write_bytes(value(1000) + b"\r\n\n" + value(1, "late?"))
        (self.folder / "in" / "a").write_bytes(b"{\n")
        ran = self.oracle("--files", "in", "--final-only")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertEqual([(row["partition"], row["offset"]) for row in self.rows("events")], [(1, 0), (1, 2)])
        letters = [(row["partition"], row["offset"], row["reason"]) for row in self.rows("dead_letters")]
        self.assertEqual(letters, [(0, 0, "malformed"), (1, 1, "malformed")])

    def test_sqlite_tables_can_be_dumped_and_compared(self):
        self.write("a.ndjson", value(1).decode() + "\nbroken\n")
        self.assertEqual(self.oracle("--files", "a.ndjson", "--final-only").returncode, 0)
        self.store("events", self.rows("events"))
        self.store("alerts", [], columns=["alert_id", "status"])
        self.store("window_aggregates", [{**row, "final": 1} for row in self.rows("windows")])
        (letter,) = self.rows("dead_letters")
        del letter["value_sha256"]
        self.store("dead_letters", [{**letter, "key": b"k", "value": b"broken"}])
        self.assertEqual(self.run_script("dump.py", "results.db", "actual").returncode, 0)
        compared = self.run_script("compare.py", "expected", "actual")
        self.assertEqual(compared.returncode, 0, compared.stdout + compared.stderr)
        self.assertIn("dead_letters: equal", compared.stdout)

        events = self.folder / "actual" / "events.ndjson"
        events.write_text(events.read_text().replace('"none"', '"<10"'))
        compared = self.run_script("compare.py", "expected", "actual")
        self.assertEqual(compared.returncode, 1)
        self.assertIn("amount_band: expected 'none', got '<10'", compared.stdout)

    def test_only_committed_lines_of_a_directory_count(self):
        files = {
            "enriched-events.ndjson": ['{"partition":0,"offset":1,"epoch":1,"amount":999999999999.999999}'],
            "alerts.ndjson": ['{"alert_id":"a","epoch":1,"final":false}', '{"alert_id":"a","epoch":2,"final":true}'],
            "windows.ndjson": [
                '{"window_name":"w","key_kind":"user","key":"u","start":"s","epoch":1}',
                '{"window_name":"w","key_kind":"user","key":"u","start":"s","epoch":2,"deleted":true}',
            ],
            "dead-letters.ndjson": ['{"partition":0,"offset":2,"epoch":1,"key":null,"value_base64":"AP8="}'],
        }
        (self.folder / "results").mkdir()
        committed = {}
        for name, lines in files.items():
            text = "".join(line + "\n" for line in lines)
            committed[name] = len(text)
            self.write(f"results/{name}", text + '{"epoch":3')
        self.write("results/progress.json", json.dumps({"committed": committed}))
        ran = self.run_script("dump.py", "results", "actual")
        self.assertEqual((ran.returncode, ran.stderr), (0, ""))

        def table(name):
            return [json.loads(line) for line in (self.folder / "actual" / name).read_text().splitlines()]

        self.assertEqual(table("events.ndjson")[0]["amount"], "999999999999.999999")
        self.assertEqual([line["epoch"] for line in table("alerts.ndjson")], [2])
        self.assertEqual([line["epoch"] for line in table("alert_changes.ndjson")], [1, 2])
        self.assertEqual(table("windows.ndjson"), [])
        digest = "06eb7d6a69ee19e5fbdf749018d3d2abfa04bcbd1365db312eb86dc7169389b8"
        self.assertEqual(table("dead_letters.ndjson")[0]["value_sha256"], digest)

        twice = 2 * (files["alerts.ndjson"][0] + "\n")
        self.write("results/alerts.ndjson", twice)
        self.write("results/progress.json", json.dumps({"committed": {"alerts.ndjson": len(twice)}}))
        self.assertIn("epoch 1 comes after epoch 1", self.run_script("dump.py", "results", "actual").stderr)


if __name__ == "__main__":
    unittest.main()
