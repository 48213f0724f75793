"""Tests of the oracle of rules of one's own, on both sides of each bound."""

import json
import unittest

import own_rules
import own_versions
from flow import Flow
from own_conditions import haversine_km, Place
from own_fields import MICRO, Rejected, Schema

FIELDS = {
    "event_id": "id",
    "event_time": {"path": "t.s", "format": "unix_s"},
    "event_type": "kind",
    "user_id": "who",
    "device_id": "dev[1]",
    "amount": {"path": "cents", "scale": 2},
    "location": {"lat": "at.lat", "lon": "at.lon"},
    "card": {"path": "card", "required": True},
    "ok": {"path": "ok", "type": "boolean", "not": True},
    "n": {"path": "n", "type": "integer"},
    "fee": {"path": "fee", "type": "decimal"},
}
SCHEMA = Schema.of({"fields": FIELDS, "keys": {"by_card": "card", "pair": ["card", "fee"], "count": "n"}})


def event(seconds, offset=0, partition=0, epoch=0, **members):
    record = {"id": f"{partition}:{offset}", "t": {"s": seconds}, "who": "u", "card": "c", "kind": "a", **members}
    made = SCHEMA.decode(json.dumps(record).encode())
    made.partition, made.offset, made.epoch = partition, offset, epoch
    return made


def find(text):
    """Stands for CEL: a kind of event, or a field."""
    name = text.removeprefix("event.")
    if name in FIELDS:
        return lambda of: of.fields.get(name)
    return lambda of: of.fields["event_type"] == name if len(name) == 1 else name


def changes(events, **rule):
    """Returns (epoch, status, offset of the event, details) of each change."""
    result = Flow(accepted=events)
    result.epochs = sorted({of.epoch for of in events}) + [99]
    result.watermarks = [0] * (len(result.epochs) - 1) + [float("inf")]
    sets = own_versions.sets([{"id": "r", **rule}], [], lambda given: own_rules.Rule(given, find), result.errors)
    rows = own_rules.alerts(result, sets, SCHEMA, "p")
    offsets = {of.event_id: of.offset for of in events}
    return [(row["epoch"], row["status"], offsets[row["event_ids"][-1]], row["details"]) for row in rows]


def found(events, **rule):
    """Returns the offsets of the events that raise an alert, if all arrive in one epoch."""
    return [offset for _, _, offset, _ in sorted(changes(events, **rule), key=lambda change: change[2])]


def at(*seconds, **members):
    return [event(second, offset, **members) for offset, second in enumerate(seconds)]


def kinds(text, step=1):
    return [event(offset * step, offset, kind=kind) for offset, kind in enumerate(text)]


class Fields(unittest.TestCase):
    def test_values_have_their_types(self):
        place = {"lat": 1.5, "lon": -2}
        made = event("12.3456", who=7, cents=1999, at=place, ok=False, n="5", fee="0.0000015", dev=["x", "d"])
        self.assertEqual(made.time, 12_345)
        self.assertEqual((made.kind, made.key, made.amount), ("user", "7", 19_990_000))
        self.assertEqual(made.fields["location"], (1.5, -2.0))
        self.assertEqual((made.fields["ok"], made.fields["n"], made.fields["fee"]), (True, 5, 2))
        self.assertEqual(made.fields["device_id"], "d")

    def test_optional_values_of_another_form_are_absent(self):
        made = event(1, ok="maybe", n=1.5, fee=True)
        self.assertEqual(made.absent, ("ok", "n", "fee"))

    def test_records_without_a_required_value_are_rejected(self):
        for record, reason, place in [
            (b"{", "malformed", None),
            (b'{"id":"1","t":{"s":"soon"},"card":"c"}', "malformed", "t.s"),
            (b'{"id":"1","t":{"s":1}}', "invalid", "card"),
        ]:
            with self.assertRaises(Rejected) as rejected:
                SCHEMA.decode(record)
            self.assertEqual((rejected.exception.reason, rejected.exception.field), (reason, place))

    def test_keys_are_the_values_of_their_fields(self):
        made = event(1, card='c"é', fee=12.5, n=3)
        self.assertEqual(SCHEMA.key("by_card", made), ("by_card", 'c"é'))
        self.assertEqual(SCHEMA.key("pair", made), ("pair", '["c\\"é",12.5]'))
        self.assertEqual(SCHEMA.key("count", made), ("count", "3"))
        self.assertEqual(SCHEMA.key("key", made), ("user", "u"))
        self.assertIsNone(SCHEMA.key("pair", event(1)))
        self.assertIsNone(SCHEMA.key("key", event(1, who=None)))


class Conditions(unittest.TestCase):
    def test_a_count_rises_at_its_threshold_and_excludes_the_start(self):
        count = {"count": {"at_least": 2, "within_ms": 10_000}}
        self.assertEqual(found(at(0, 5, 9, 20, 30, 31), **count), [1, 5])
        self.assertEqual(found(at(0, 5), count={"more_than": 1, "within_ms": 10_000}), [1])

    def test_sums_and_averages_are_compared_exactly(self):
        events = [event(n, n, cents=cents) for n, cents in enumerate([100, 200, 1])]
        span = {"of": "amount", "within_ms": 60_000}
        self.assertEqual(found(events, sum={"more_than": 3, **span}), [2])
        self.assertEqual(found(events, sum={"at_least": 3, **span}), [1])
        self.assertEqual(found(events, average={"at_least": 1.5, "at_least_events": 2, **span}), [1])
        self.assertEqual(found(events, average={"more_than": 1.5, **span}), [])

    def test_events_without_the_value_are_not_considered(self):
        events = [event(0, 0, cents=100), event(20, 1), event(21, 2, cents=100)]
        self.assertEqual(found(events, sum={"of": "amount", "at_least": 1, "within_ms": 10_000}), [0])

    def test_distinct_values_and_shares(self):
        events = [event(n, n, kind=kind, ok=kind == "a") for n, kind in enumerate("aabb")]
        self.assertEqual(found(events, distinct={"of": "event_type", "at_least": 2, "within_ms": 9_000}), [2])
        share = {"of": "event.ok", "within_ms": 9_000, "at_least_events": 3}
        self.assertEqual(found(events, share={"more_than": 0.5, **share}), [])
        self.assertEqual(found(events, share={"more_than": 0.3, **share}), [2])

    def test_an_outlier_has_a_floor_and_groups(self):
        cents = [1000, 1000, 1029, 1000, 5000]
        events = [event(n, n, cents=value, kind="ab"[n == 4]) for n, value in enumerate(cents)]
        outlier = {"of": "amount", "at_least": 2, "sigmas": 3}
        self.assertEqual(found(events, outlier=outlier), [4])
        self.assertEqual(found(events, outlier={**outlier, "group_by": "event_type"}), [])
        # The events without a group are one: "n" is absent.
        self.assertEqual(found(events, outlier={**outlier, "group_by": "n"}), [4])

    def test_travel_compares_with_the_located_event_before(self):
        places = [event(0, 0, at={"lat": 0, "lon": 0}), event(1, 1), event(60, 2, at={"lat": 0, "lon": 1})]
        ((_, _, offset, details),) = changes(places, travel={})
        self.assertEqual((offset, details["seconds"]), (2, 60))
        self.assertAlmostEqual(haversine_km(Place((0, 0)), Place((0, 1))), details["km"], 2)
        self.assertEqual(found(places, travel={"more_than_km": 200}), [])

    def test_a_sequence_ends_all_runs_that_an_event_completes(self):
        steps = {"steps": [{"where": "a"}, {"where": "b"}], "within_ms": 10_000}
        self.assertEqual(found(kinds("aabb"), sequence=steps), [2])
        self.assertEqual(found(kinds("ab", 10), sequence=steps), [])
        twice = {"steps": [{"where": "a", "times": 2}, {"where": "b"}], "within_ms": 10_000}
        self.assertEqual(found(kinds("acabb"), sequence=twice), [3])

    def test_a_step_that_must_not_follow_ends_waiting_runs(self):
        steps = {"steps": [{"where": "a"}, {"not": "b"}], "within_ms": 10_000}
        self.assertEqual(found(kinds("a") + [event(10, 1, kind="b")], sequence=steps), [0])
        self.assertEqual(found(kinds("a") + [event(9, 1, kind="b")], sequence=steps), [])
        self.assertEqual(found(kinds("a" * 10, 0), sequence=steps), list(range(8)))

    def test_an_absence_ends_with_the_time_span(self):
        events = at(0, 10, 19)
        self.assertEqual(found(events, absence={"within_ms": 10_000}), [0, 2])
        (first, _) = changes(events, absence={"within_ms": 10_000})
        self.assertEqual(first[:2], (99, "raised"), "it waits for the watermark")


class Suppression(unittest.TestCase):
    def test_a_condition_that_still_holds_raises_after_it(self):
        rule = {"count": {"at_least": 2, "within_ms": 100_000}, "suppress_ms": 10_000}
        self.assertEqual(found(at(0, 1, 2, 10, 11, 12, 21), **rule), [1, 4, 6])

    def test_silences_are_suppressed_by_their_ends(self):
        rule = {"absence": {"within_ms": 10_000}, "suppress_ms": 30_000}
        self.assertEqual(found(at(0, 20, 29.999, 45, 60), **rule), [0, 3])


class Changes(unittest.TestCase):
    def test_an_event_out_of_order_revokes_and_raises(self):
        events = [event(0, 0), event(9, 1), event(5, 2, epoch=1)]
        found = changes(events, count={"at_least": 2, "within_ms": 10_000})
        self.assertEqual([change[:3] for change in found], [(0, "raised", 1), (1, "raised", 2), (1, "revoked", 1)])

    def test_final_alerts_are_raised_once_by_the_watermark(self):
        events = [event(0, 0), event(9, 1), event(5, 2, epoch=1)]
        found = changes(events, count={"at_least": 2, "within_ms": 10_000}, emit="final")
        self.assertEqual([change[:3] for change in found], [(99, "raised", 2)])

    def test_amounts_count_millionths(self):
        self.assertEqual(event(0, cents=1).amount, MICRO // 100)


if __name__ == "__main__":
    unittest.main()
