"""Tests of the oracle's decoder with the corpus of tests/poison."""

import subprocess
import sys
import time
import unittest

import compare
import poison
from decode import FIELDS, Rejected, decode


def outcome(value, strict=False):
    """Returns the outcome of decoding: valid, malformed or invalid; the field; the event."""
    try:
        return "valid", None, decode(value, strict)
    except Rejected as rejected:
        return rejected.reason, rejected.field, None


class Corpus(unittest.TestCase):
    def test_every_case_has_its_outcome(self):
        for case in poison.cases():
            with self.subTest(case["name"]):
                expect, field, event = outcome(poison.value(case))
                self.assertEqual((expect, field), (case["expect"], case["field"]))
                for name, wanted in case["event"].items():
                    got = getattr(event, {"key_kind": "kind", "event_time": "time"}.get(name, name))
                    if name == "attributes" and wanted is not None:
                        wanted, got = compare.document(wanted), compare.document(got)
                    # Compared as text, since minus zero is equal to zero.
                    self.assertEqual(str(got), str(wanted), name)

    def test_malformed_optional_fields_are_absent_or_reject_a_record(self):
        for case in poison.cases():
            with self.subTest(case["name"]):
                _, _, event = outcome(poison.value(case))
                if event is not None:
                    self.assertEqual(set(event.absent), set(case["absent"]))
                if case["absent"]:
                    wrong = [(reason, field) for field, reason in case["absent"].items()]
                    # Types are checked before rules, then fields in their order.
                    first = min(wrong, key=lambda found: (found[0] != "malformed", FIELDS.index(found[1])))
                    self.assertEqual(outcome(poison.value(case), strict=True)[:2], first)
                else:
                    strict = outcome(poison.value(case), strict=True)[0]
                    self.assertEqual(strict == "valid", case["expect"] == "valid")

    def test_no_case_takes_long(self):
        for case in poison.cases():
            value = poison.value(case)
            before = time.process_time()
            outcome(value)
            self.assertLess(time.process_time() - before, 3, case["name"])

    def test_the_corpus_is_large_and_has_unique_names_and_ids(self):
        cases = poison.cases()
        self.assertGreaterEqual(sum(case["expect"] != "valid" for case in cases), 200)
        self.assertEqual(len({case["name"] for case in cases}), len(cases))
        events = [outcome(poison.value(case))[2] for case in cases if case["expect"] == "valid"]
        self.assertEqual(len({event.event_id for event in events}), len(events))

    def test_the_committed_cases_match_the_generator(self):
        made = subprocess.run(
            [sys.executable, "-c", "import make, sys; sys.stdout.write(make.text())"],
            cwd=poison.FOLDER,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertEqual(made.stdout, (poison.FOLDER / "cases.json").read_text(encoding="ascii"))


if __name__ == "__main__":
    unittest.main()
