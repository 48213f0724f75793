"""Tests of the comparison: it detects every kind of difference and accepts the formats of all stores."""

import base64
import json
import unittest

import compare


def differences(table, expected, actual):
    return list(compare.differences(table, map(json.dumps, expected), map(json.dumps, actual)))


EVENT = {
    "partition": 0,
    "offset": 1,
    "epoch": 7,
    "event_time": 1_767_323_045_678,
    "amount": "-12.5",
    "currency": None,
    "lat": 1.1,
    "attributes": '{"a":0.1,"b":[1]}',
    "km_from_previous": 123.456,
}
WINDOW = {
    "window_name": "w",
    "key_kind": "user",
    "key": "u",
    "start": -1000,
    "end": 253_402_300_800_000,
    "mean": 0.1,
    "final": True,
    "epoch": 3,
}
ALERT = {"alert_id": "a", "epoch": 3, "status": "raised", "event_ids": ["x", "y"], "details": {"km": 50.0, "n": 3}}
LETTER = {"partition": 0, "offset": 1, "reason": "late", "field": "event_time", "value_sha256": None}


class Equal(unittest.TestCase):
    def same(self, table, row, **changes):
        self.assertEqual(differences(table, [row], [{**row, **changes}]), [])

    def test_rows_of_the_oracle_are_equal_to_themselves(self):
        for table, row in {"events": EVENT, "windows": WINDOW, "alerts": ALERT, "dead_letters": LETTER}.items():
            self.same(table, row)

    def test_stores_may_write_values_in_other_forms(self):
        self.same("events", EVENT, event_time="2026-01-02T03:04:05.678Z", amount=-12.50, message="not judged")
        self.same("events", EVENT, event_time="2026-01-02 03:04:05.678000+00", amount="-12.500000")
        self.same("events", EVENT, attributes={"b": [1.0], "a": 1e-1})
        self.same("windows", WINDOW, start="1969-12-31T23:59:59.000Z", end="10000-01-01T00:00:00Z", final=1)
        self.same("alerts", ALERT, event_ids='["x", "y"]', details='{"n": 3, "km": 50}')

    def test_floats_may_differ_by_their_tolerance(self):
        self.same("events", EVENT, km_from_previous=123.457)
        self.same("windows", WINDOW, mean=0.1 * (1 + 1e-10))
        self.same("windows", {**WINDOW, "mean": 0.0}, mean=1e-10)
        self.same("alerts", ALERT, details={"km": 50.0004, "n": 3})

    def test_the_amount_of_an_alert_is_exact(self):
        alert = {**ALERT, "details": {"amount": "1234567.89", "mean": 10.0}}
        self.same("alerts", alert, details='{"amount":1234567.89,"mean":10.00004}')
        for amount in ("1234567.9", "1234570.0", '"1234567.89"'):
            given = {**alert, "details": f'{{"amount":{amount},"mean":10.0}}'}
            self.assertEqual(len(differences("alerts", [alert], [given])), 1, amount)

    def test_a_dead_letter_may_have_its_value(self):
        letter = {**LETTER, "value_sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
        brought = {key: value for key, value in letter.items() if key != "value_sha256"}
        brought["value"] = base64.b64encode(b"abc").decode()
        self.assertEqual(differences("dead_letters", [letter], [brought]), [])
        brought["value"] = base64.b64encode(b"abd").decode()
        self.assertEqual(len(differences("dead_letters", [letter], [brought])), 1)
        brought["value"] = None
        self.assertEqual(len(differences("dead_letters", [letter], [brought])), 1)

    def test_windows_that_are_not_final_are_ignored(self):
        self.assertEqual(differences("windows", [], [{**WINDOW, "final": False}]), [])
        self.assertEqual(len(differences("windows", [WINDOW], [{**WINDOW, "final": 0}])), 1)

    def test_without_epochs_revoked_alerts_are_ignored(self):
        without = {key: value for key, value in ALERT.items() if key != "epoch"}
        revoked = {**ALERT, "alert_id": "b", "status": "revoked"}
        self.assertEqual(differences("alerts", [without], [ALERT, revoked]), [])
        self.assertEqual(len(differences("alerts", [ALERT], [ALERT, revoked])), 1)


class Different(unittest.TestCase):
    def test_each_column_that_differs_is_named(self):
        for table, row, changes in (
            ("events", EVENT, {"epoch": 8}),
            ("events", EVENT, {"event_time": "2026-01-02T03:04:05.679Z"}),
            ("events", EVENT, {"event_time": "yesterday"}),
            ("events", EVENT, {"amount": "-12.500001"}),
            ("events", EVENT, {"amount": None}),
            ("events", EVENT, {"currency": ""}),
            ("events", EVENT, {"lat": 1.1000000000000003}),
            ("events", EVENT, {"km_from_previous": 123.46}),
            ("events", EVENT, {"attributes": '{"a":0.1000000000000000000001,"b":[1]}'}),
            ("events", EVENT, {"attributes": '{"a":"0.1","b":[1]}'}),
            ("events", EVENT, {"attributes": '{"a":0.1,"b":[1],"c":null}'}),
            ("windows", WINDOW, {"mean": 0.1 * (1 + 1e-8)}),
            ("windows", WINDOW, {"mean": 1e-10}),
            ("windows", {**WINDOW, "mean": 0.0}, {"mean": 1e-8}),
            ("windows", WINDOW, {"end": 253_402_300_800_001}),
            ("alerts", ALERT, {"status": "revoked"}),
            ("alerts", ALERT, {"details": {"km": 50.01, "n": 3}}),
            ("alerts", ALERT, {"details": {"km": 50.0, "n": 4}}),
            ("alerts", ALERT, {"event_ids": ["y", "x"]}),
            ("dead_letters", LETTER, {"reason": "future"}),
            ("dead_letters", LETTER, {"value_sha256": "00"}),
        ):
            with self.subTest(table=table, changes=changes):
                (difference,) = differences(table, [row], [{**row, **changes}])
                self.assertIn(next(iter(changes)), difference)

    def test_extra_missing_and_repeated_rows_are_reported(self):
        other = {**EVENT, "offset": 2}
        self.assertIn("missing", differences("events", [EVENT, other], [EVENT])[0])
        self.assertIn("not expected", differences("events", [EVENT], [EVENT, other])[0])
        self.assertIn("twice", differences("events", [EVENT], [EVENT, EVENT])[0])

    def test_a_missing_column_is_reported(self):
        without = {key: value for key, value in EVENT.items() if key != "currency"}
        self.assertIn("no currency", differences("events", [EVENT], [without])[0])


if __name__ == "__main__":
    unittest.main()
