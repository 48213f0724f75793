"""Tests of alerts over epochs, of enrichment, and of output rows."""

import hashlib
import unittest

import alerts
import enrich
import flow
import outputs
from fixtures import bound, event, record, settings

BURST = {"rapid_fire_burst": {"at_least": 2, "within_ms": 10, "severity": "low"}}


class Alerts(unittest.TestCase):
    def run_flow(self, epochs, **given):
        """Admits epochs, given as lists of event times of one key in one partition, none of them late."""
        times = [time for epoch in epochs for time in epoch]
        records = [record(0, offset, time) for offset, time in enumerate(times)]
        ends = [sum(map(len, epochs[: at + 1])) for at in range(len(epochs))]
        bounds = [
            bound(at + 1, (0, end, max(times[:end], default=None))) for at, end in enumerate(ends)
        ]
        self.settings = settings(patterns=BURST, time={"max_out_of_orderness_ms": 50}, **given)
        return flow.with_bindings(records, bounds, self.settings)

    def changes(self, epochs, emission=None):
        found = alerts.changes(self.run_flow(epochs), self.settings, emission)
        return [(change.epoch, change.status, change.event.offset) for change in found]

    def test_an_immediate_alert_is_raised_in_the_epoch_of_its_event(self):
        self.assertEqual(self.changes([[0], [5], [7]]), [(2, "raised", 1)])

    def test_an_event_out_of_order_revokes_wrong_alerts(self):
        # 12 and 15 are two within 10. With 3, so are 0 and 3, then 3 and 12: the edge is at 3 and nowhere else.
        self.assertEqual(
            sorted(self.changes([[0, 12, 15], [3]])), [(1, "raised", 2), (2, "raised", 3), (2, "revoked", 2)]
        )

    def test_changed_details_raise_the_alert_again(self):
        amounts = {0: 8, 1: 12, 2: 10, 9: 100, 5: 10}
        records = [record(0, offset, time, amount=amount) for offset, (time, amount) in enumerate(amounts.items())]
        bounds = [bound(1, (0, 4, 9)), bound(2, (0, 5, 5)), bound(3, (0, 5, None))]
        given_settings = settings(patterns={"amount_anomaly": {"at_least": 3}}, time={"max_out_of_orderness_ms": 50})
        found = alerts.changes(flow.with_bindings(records, bounds, given_settings), given_settings)
        said = [(change.epoch, change.status, dict(change.match.details)["n"]) for change in found]
        self.assertEqual(said, [(1, "raised", 3), (2, "raised", 4)])

    def test_within_one_epoch_only_the_final_outcome_is_emitted(self):
        self.assertEqual(self.changes([[20, 25, 18]]), [(1, "raised", 0)])

    def test_a_final_alert_waits_for_the_watermark(self):
        # W is 51 below the greatest time, so it reaches 5 at the event of time 56.
        self.assertEqual(self.changes([[0, 5], [55], [56]], "final"), [(3, "raised", 1)])
        self.assertEqual(self.changes([[0, 5], [55]], "final"), [])

    def test_the_id_is_a_hash_of_its_parts_each_with_its_length(self):
        parts = [b"p", b"rule", b"1", b"user", "é".encode(), b"3", b"17"]
        text = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        self.assertEqual(
            alerts.identity("p", "rule", event(0, 17, 3, user="é")), hashlib.sha256(text).hexdigest()[:32]
        )


class Enrichment(unittest.TestCase):
    def test_an_event_is_enriched_as_of_its_arrival(self):
        here, there = {"lat": 0, "lon": 0}, {"lat": 1, "lon": 0}
        events = [
            event(100, 0, amount=10, location=here),
            event(90, 1),
            event(95, 2, user="other", amount=-1),
            event(200, 3, amount="0.5", location=there),
        ]
        known = [(k.key_events, k.key_amount_mean, k.since_previous_ms, k.km_from_previous)
                 for _, k in enrich.enriched(flow.Flow(accepted=events))]  # fmt: skip
        self.assertEqual(
            known, [(1, 10.0, None, None), (2, 10.0, -10, None), (1, -1.0, None, None), (3, 5.25, 110, 111.195)]
        )

    def test_bands_include_their_lower_bound_and_refunds_are_lowest(self):
        amounts = {"none": None, "<10": -(10**12), "<100": 10_000_000, "<1000": 999_999_999, "<10000": 10**9}
        for band, amount in amounts.items():
            self.assertEqual(enrich.amount_band(amount), band)
        self.assertEqual([enrich.amount_band(9_999_999), enrich.amount_band(10**10)], ["<10", ">=10000"])


class Rows(unittest.TestCase):
    def test_amounts_are_written_exactly_and_without_trailing_zeros(self):
        for micros, text in {0: "0", 1: "0.000001", -1_500_000: "-1.5", 10**18: "1000000000000", None: None}.items():
            self.assertEqual(outputs.decimal(micros), text)

    def tables(self, epochs=True, close=False, **given):
        given_settings = settings(windows=[{"name": "w", "kind": "tumbling", "by": "key", "size_ms": 10}], **given)
        records = [record(0, 0, 5), record(0, 1, 12), record(0, 2, 3), record(0, 3, 31)]
        bounds = [
            bound(1, (0, 2, 12), watermark=11),
            bound(4, (0, 4, 31), watermark=30),
            *([bound(6, close=True)] if close else []),
        ]
        result = flow.with_bindings(records, bounds, given_settings) if epochs else flow.without_epochs(records, given_settings)
        self.assertEqual(result.errors, [])
        return dict(outputs.tables(result, given_settings, epochs))

    def test_a_window_is_written_when_the_watermark_reaches_its_last_ms(self):
        written = [(row["start"], row["epoch"], row["count"]) for row in self.tables()["windows"]]
        self.assertEqual(written, [(0, 1, 1), (10, 4, 1)])
        written = [(row["start"], row["epoch"], row["count"]) for row in self.tables(close=True)["windows"]]
        self.assertEqual(written, [(0, 1, 1), (10, 4, 1), (30, 6, 1)])

    def test_a_watermark_below_the_last_ms_does_not_close_a_window(self):
        given_settings = settings(windows=[{"name": "w", "kind": "tumbling", "by": "key", "size_ms": 10}])
        records = [record(0, 0, 5), record(0, 1, 9), record(0, 2, 10)]
        bounds = [bound(epoch, (0, epoch, time), watermark=time - 1) for epoch, time in ((1, 5), (2, 9), (3, 10))]
        (row,) = dict(outputs.tables(flow.with_bindings(records, bounds, given_settings), given_settings, epochs=True))["windows"]
        self.assertEqual((row["start"], row["end"], row["epoch"], row["final"]), (0, 10, 3, True))

    def test_attributes_are_written_canonically(self):
        given_settings = settings()
        given = {"b": "\u00e9", "a": {"d": 1.50, "c": None}}
        result = flow.without_epochs([record(0, 0, 5, x=True, attributes=given)], given_settings)
        (row,) = dict(outputs.tables(result, given_settings, epochs=False))["events"]
        self.assertEqual(row["attributes"], '{"a":{"c":null,"d":1.5},"b":"\u00e9","x":true}')

    def test_windows_have_only_keys_of_their_kind(self):
        records = [record(0, 0, 5), record(0, 1, 5, event_type="iot_sensor", device_id="d")]
        for by, keys in {"user_id": ["u"], "device_id": ["d"], "key": ["d", "u"]}.items():
            given_settings = settings(windows=[{"name": "w", "kind": "session", "by": by, "gap_ms": 10}])
            rows = dict(outputs.tables(flow.without_epochs(records, given_settings), given_settings, epochs=False))["windows"]
            self.assertEqual([row["key"] for row in rows], keys)

    def test_without_epochs_nothing_depends_on_arrival(self):
        tables = self.tables(epochs=False)
        self.assertEqual([row["count"] for row in tables["windows"]], [2, 1, 1])
        self.assertNotIn("alert_changes", tables)
        self.assertNotIn("epoch", tables["windows"][0])
        self.assertFalse(outputs.ARRIVAL & tables["events"][0].keys())
        self.assertEqual([letter["reason"] for letter in self.tables()["dead_letters"]], ["late"])

    def test_a_revoked_alert_stays_in_the_table(self):
        given_settings = settings(patterns=BURST, time={"max_out_of_orderness_ms": 50})
        # 12 and 15 raise an alert at 15; 3 and 4, which are 9 and 8 before 12, move the edge to 4, with no further edge.
        records = [record(0, offset, time) for offset, time in enumerate([12, 15, 3, 4])]
        bounds = [bound(1, (0, 2, 15), watermark=-36), bound(2, (0, 4, 4), watermark=-36)]
        result = flow.with_bindings(records, bounds, given_settings)
        self.assertEqual(result.errors, [])
        tables = dict(outputs.tables(result, given_settings, epochs=True))
        states = [(row["event_time"], row["epoch"], row["status"]) for row in tables["alerts"]]
        self.assertEqual(sorted(states), [(4, 2, "raised"), (15, 2, "revoked")])
        changes = [(row["event_time"], row["epoch"], row["status"]) for row in tables["alert_changes"]]
        self.assertEqual(sorted(changes), [(4, 2, "raised"), (15, 1, "raised"), (15, 2, "revoked")])


if __name__ == "__main__":
    unittest.main()
