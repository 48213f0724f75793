"""Tests of the oracle of rules that change: which version judges an event, and what it knows of those before."""

import json
import unittest

import own_rules
import own_versions
from flow import Flow
from test_own_rules import SCHEMA, at, event, find

COUNT = {"id": "r", "count": {"at_least": 2, "within_ms": 10_000}}


def text(number, *rules, **written):
    """Returns the text of a set, as the engine writes it."""
    written = {"state": 1, "revision": 1, "complete": "always", **written}
    rules = [{"toml": toml(rule), **written} for rule in rules]
    return json.dumps({"version": number, "file": 0, "rules": rules})


def toml(value):
    if isinstance(value, dict):
        members = (f"{key.removesuffix('_ms')} = {toml_of(key, member)}" for key, member in value.items())
        return "{ " + ", ".join(members) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def toml_of(key, value):
    return json.dumps(f"{value}ms") if key.endswith("_ms") else toml(value)


def run(events, first, *changes):
    """Returns the changes of alerts, as (epoch, status, offset of the last event, revision), and the errors."""
    result = Flow(accepted=events)
    result.epochs = sorted({of.epoch for of in events} | {epoch for epoch, _ in changes}) + [99]
    result.watermarks = [0] * (len(result.epochs) - 1) + [float("inf")]
    sets = own_versions.sets(first, changes, lambda given: own_rules.Rule(given, find), result.errors)
    rows = own_rules.alerts(result, sets, SCHEMA, "p")
    offsets = {of.event_id: of.offset for of in events}
    return [
        (row["epoch"], row["status"], offsets[row["event_ids"][-1]], row["rule_version"]) for row in rows
    ], result.errors


def with_bounds(**bounds):
    return {**COUNT, "count": {**COUNT["count"], **bounds}}


class InForce(unittest.TestCase):
    def test_events_of_later_epochs_are_judged_by_the_new_set(self):
        events = [event(0, 0), event(1, 1), event(2, 2, epoch=1), event(3, 3, epoch=2)]
        other = with_bounds(at_least=4)
        self.assertEqual(run(events, [COUNT], (1, text(2, other, revision=2)))[0], [(0, "raised", 1, 1)])
        # Two events are known: as many as the first version counts.
        events.append(event(4, 4, epoch=2))
        self.assertEqual(
            run(events, [COUNT], (1, text(2, other, revision=2)))[0], [(0, "raised", 1, 1), (2, "raised", 4, 2)]
        )

    def test_a_late_neighbour_judges_an_event_by_its_own_set(self):
        events = [event(0, 0), event(9, 1), event(5, 2, epoch=2)]
        found, _ = run(events, [COUNT], (1, text(2, with_bounds(at_least=3), revision=2)))
        # The condition of the first version holds at the last event, and that of the second not before it.
        self.assertEqual(found, [(0, "raised", 1, 1)])

    def test_a_rule_without_predecessor_begins_without_history(self):
        events = [event(0, 0), event(1, 1, epoch=2), event(2, 2, epoch=2)]
        self.assertEqual(run(events, [], (1, text(2, COUNT)))[0], [(2, "raised", 2, 1)])
        other = {**COUNT, "where": "a"}
        self.assertEqual(run(events, [COUNT], (1, text(2, other, revision=2)))[0], [(2, "raised", 2, 2)])

    def test_a_removed_rule_revokes_nothing(self):
        events = [event(0, 0), event(9, 1), event(5, 2, epoch=2)]
        self.assertEqual(run(events, [COUNT], (1, text(2)))[0], [(0, "raised", 1, 1)])
        final = {**COUNT, "emit": "final"}
        self.assertEqual(run(events, [final], (1, text(2)))[0], [(99, "raised", 1, 1)])

    def test_removed_absences_are_not_emitted(self):
        absence = {"id": "r", "absence": {"within_ms": 10_000}}
        self.assertEqual(run(at(0), [absence])[0], [(99, "raised", 0, 1)])
        self.assertEqual(run(at(0), [absence], (1, text(2)))[0], [])

    def test_a_changed_absence_begins_again(self):
        absence = {"id": "r", "absence": {"within_ms": 10_000}}
        self.assertFalse(own_versions.keeps_state({**absence, "severity": "low"}, absence))
        self.assertFalse(own_versions.keeps_state({**absence, "mode": "shadow"}, absence))
        self.assertTrue(own_versions.keeps_state({**absence, "description": "x"}, absence))


class Memory(unittest.TestCase):
    def changed(self, events, first, then):
        """Returns the offsets of the events at which the second version raises an alert."""
        found, _ = run(events, [{"id": "r", **first}], (0, text(2, {"id": "r", **then}, revision=2)))
        return sorted(offset for _, status, offset, revision in found if revision == 2 and status == "raised")

    def events(self, *seconds, old, **members):
        return [event(time, offset, epoch=int(offset >= old), **members) for offset, time in enumerate(seconds)]

    def test_a_sum_knows_the_time_before_the_last_number(self):
        span = {"of": "amount", "at_least": 3}
        short, long = ({"sum": {**span, "within_ms": within}} for within in (10_000, 100_000))
        events = self.events(0, 11, 12, 13, old=2, cents=100)
        self.assertEqual(self.changed(events, long, long | {"severity": "high"}), [])
        self.assertEqual(self.changed(events, long, {**long, "suppress_ms": 1}), [2, 3])
        self.assertEqual(self.changed(events, short, long), [3])

    def test_distinct_values_are_forgotten_beyond_the_bound(self):
        two = {"distinct": {"of": "n", "at_least": 2, "within_ms": 1_000}}
        three = {"distinct": {"of": "n", "at_least": 3, "within_ms": 100_000}}
        events = [event(time, time, epoch=int(time >= 3), n=n) for time, n in enumerate([1, 2, 3, 3, 2])]
        self.assertEqual(self.changed(events, two, three), [], "the first value is forgotten")
        events[3] = event(3, 3, epoch=1, n=4)
        self.assertEqual(self.changed(events, two, three), [3])

    def test_runs_of_a_sequence_go_on(self):
        steps = [{"where": "a"}, {"where": "b"}]
        short, long = ({"sequence": {"steps": steps, "within_ms": within}} for within in (10_000, 100_000))
        events = [event(0, 0, kind="a"), event(20, 1, kind="b", epoch=1)]
        self.assertEqual(self.changed(events, short, long), [1], "no event has ended the run")
        events = [event(0, 0, kind="a"), event(11, 1, kind="a"), event(12, 2, kind="b"), event(13, 3, kind="b", epoch=1)]
        self.assertEqual(self.changed(events, short, long), [], "it ended when another one began")
        self.assertEqual(self.changed(events[:1] + events[3:], long, short), [])

    def test_the_suppression_goes_on(self):
        match = {"match": True, "suppress_ms": 5_000}
        self.assertEqual(self.changed(self.events(0, 4, 5, old=1), match, {**match, "suppress_ms": 9_000}), [2])


class Agreement(unittest.TestCase):
    def errors(self, *rules, first=(COUNT,), number=1, **written):
        return run(at(0), list(first), (1, text(number, *rules, **written)))[1]

    def test_texts_must_agree(self):
        self.assertEqual(self.errors(COUNT), [])
        self.assertIn("the revision is 1", self.errors(COUNT, revision=2)[0])
        self.assertIn("expected 1", self.errors(COUNT, number=2)[0])
        self.assertIn("expected 2", self.errors(number=3)[0])
        self.assertIn("of another rule", self.errors(COUNT, {**COUNT, "id": "s"})[0])
        changes = [(1, text(1, COUNT)), (2, text(1, COUNT, state=2))]
        self.assertIn("it must go on", run(at(0), [COUNT], *changes)[1][0])

    def test_a_rule_that_says_it_is_complete_must_be(self):
        events = [event(0, 0), event(1, 1, epoch=2)]
        self.assertIn("it is said to be complete at 1000", run(events, [], (1, text(2, COUNT)))[1][0])
        complete = {"from": 1_000}
        self.assertEqual(run(events, [], (1, text(2, COUNT, complete=complete)))[1], [])


if __name__ == "__main__":
    unittest.main()
