"""Tests of epochs, watermarks and admission: small cases computed by hand."""

import unittest

import flow
from fixtures import bound, record, settings


def reasons(result):
    return {(letter.partition, letter.offset): letter.reason for letter in result.dead_letters}


def accepted(result):
    return [(event.epoch, event.partition, event.offset) for event in result.accepted]


class Epochs(unittest.TestCase):
    def test_a_record_belongs_to_the_first_epoch_that_ends_beyond_it(self):
        records = [record(0, offset, 100 + offset) for offset in (0, 1, 4, 5)]
        bounds = [
            bound(3, (0, 1, 100), watermark=99),
            bound(7, (0, 5, 104), watermark=103),
            bound(9, (0, 6, 105), watermark=104),
        ]
        result = flow.with_bindings(records, bounds, settings())
        self.assertEqual(accepted(result), [(3, 0, 0), (7, 0, 1), (7, 0, 4), (9, 0, 5)])
        self.assertEqual(result.errors, [])

    def test_a_record_beyond_the_last_binding_was_not_read(self):
        records = [record(0, 0, 1), record(0, 1, 2)]
        result = flow.with_bindings(records, [bound(1, (0, 1, 1), watermark=0)], settings())
        self.assertEqual((accepted(result), result.unbound), ([(1, 0, 0)], 1))

    def test_events_of_an_epoch_are_in_order_of_time_and_position(self):
        records = [record(1, 0, 5), record(1, 1, 3), record(0, 0, 5), record(0, 1, 5)]
        result = flow.with_bindings(records, [bound(1, (0, 2, 5), (1, 2, 5), watermark=4)], settings())
        self.assertEqual(accepted(result), [(1, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0)])


class Watermarks(unittest.TestCase):
    def watermarks(self, records, bounds, **given):
        given = {"time": {"max_out_of_orderness_ms": 100}, **given}
        result = flow.with_bindings(records, bounds, settings(**given))
        return result.watermarks, result.errors

    def test_the_watermark_follows_the_slowest_partition_and_is_monotonic(self):
        records = [record(0, 0, 1000), record(1, 0, 500), record(1, 1, 300), record(1, 2, 600), record(1, 3, 2000)]
        bounds = [
            bound(1, (0, 1, 1000)),
            bound(2, (1, 1, 500), watermark=399),
            bound(3, (1, 2, 300), watermark=399),
            bound(4, (1, 2, None, "idle"), watermark=899),
            bound(5, (0, 1, None, "idle"), watermark=899),
            bound(6, (1, 3, 600), watermark=899),
            bound(7, (1, 4, 2000), watermark=1899),
        ]
        watermarks, errors = self.watermarks(records, bounds)
        self.assertEqual(watermarks, [flow.BEGINNING, 399, 399, 899, 899, 899, 1899])
        self.assertEqual(errors, [])

    def test_a_partition_without_bindings_holds_the_watermark(self):
        bounds = [bound(1, (0, 1, 1000))]
        self.assertEqual(self.watermarks([record(0, 0, 1000)], bounds, partitions=2), ([flow.BEGINNING], []))

    def test_an_added_partition_holds_from_its_first_binding(self):
        records = [record(0, 0, 1000), record(0, 1, 2000), record(1, 0, 1500)]
        bounds = [
            bound(1, (0, 1, 1000), watermark=899),
            bound(2, (0, 2, 2000), (1, 0, None), watermark=899),
            bound(3, (1, 1, 1500), watermark=1399),
        ]
        self.assertEqual(self.watermarks(records, bounds, partitions=1), ([899, 899, 1399], []))

    def test_an_idle_partition_without_events_does_not_hold_the_watermark(self):
        bounds = [bound(1, (0, 1, 1000), (1, 0, None, "idle"), watermark=899)]
        self.assertEqual(self.watermarks([record(0, 0, 1000)], bounds), ([899], []))

    def test_closing_moves_the_watermark_to_the_end_of_time(self):
        bounds = [bound(1, (0, 1, 1000), watermark=899), bound(2, close=True)]
        self.assertEqual(self.watermarks([record(0, 0, 1000)], bounds), ([899, flow.END], []))

    def test_late_and_duplicate_events_advance_the_watermark(self):
        t = 1_800_000_000_000
        records = [
            record(0, 0, t + 1000, timestamp=t + 1000, event_id="a"),
            record(0, 1, t + 5000, timestamp=t + 1000),
            record(0, 2, t + 1500, timestamp=t + 1500, event_type="x"),
            record(0, 3, t + 1010, timestamp=t + 1010, event_id="a"),
        ]
        bounds = [bound(1, (0, 4, t + 1010), watermark=t + 909)]
        given = {"time": {"max_out_of_orderness_ms": 100, "max_future_skew_ms": 200}, "dedup_horizon_ms": 50}
        self.assertEqual(self.watermarks(records, bounds, **given), ([t + 909], []))

    def test_the_earliest_clock_advances_the_watermark(self):
        t = 1_800_000_000_000
        records = [
            record(0, 0, t, timestamp=t + 50),
            record(0, 1, t + 200, timestamp=t + 20),
            record(0, 2, t + 200, timestamp=-1),
        ]
        bounds = [
            bound(1, (0, 1, t), watermark=t - 101, wall_ms=t + 60),
            bound(2, (0, 2, t + 200), watermark=t - 81, wall_ms=t + 60),
            bound(3, (0, 3, t + 200), watermark=t - 1, wall_ms=t + 100),
        ]
        self.assertEqual(self.watermarks(records, bounds), ([t - 101, t - 81, t - 1], []))

    def test_a_jump_of_a_file_counts_once_the_next_record_confirms_it(self):
        hour = 3_600_000
        times = [0, 1, 90 * hour, 2, 50 * hour, 51 * hour]
        records = [record(0, offset, time) for offset, time in enumerate(times)]
        greatest = [0, 1, 90 * hour, 2, 50 * hour, 51 * hour]
        expected = [flow.BEGINNING, 0, 0, 1, 1, 51 * hour - 1]
        bounds = [
            bound(at + 1, (0, at + 1, greatest[at]), watermark=None if w == flow.BEGINNING else w)
            for at, w in enumerate(expected)
        ]
        given = {"time": {"max_out_of_orderness_ms": 0}, "source": {"kind": "file"}}
        self.assertEqual(self.watermarks(records, bounds, **given), (expected, []))

    def test_the_watermark_follows_the_wall_once_all_are_idle(self):
        records = [record(0, 0, 1000)]
        bounds = [
            bound(1, (0, 1, 1000), watermark=899, wall_ms=5_000),
            bound(2, (0, 1, None, "idle"), watermark=899, wall_ms=6_000),
            bound(3, watermark=899, wall_ms=7_999),
            bound(4, watermark=2_899, wall_ms=8_000),
            bound(5, watermark=2_899, wall_ms=8_999),
        ]
        given = {"time": {"max_out_of_orderness_ms": 100, "idle_advance_ms": 2_000}}
        self.assertEqual(self.watermarks(records, bounds, **given), ([899, 899, 899, 2_899, 2_899], []))


class Admission(unittest.TestCase):
    def test_events_up_to_the_previous_watermark_are_late(self):
        records = [record(0, 0, 1000), record(0, 1, 999), record(0, 2, 1000), record(0, 3, 998)]
        bounds = [bound(1, (0, 1, 1000), watermark=999), bound(2, (0, 4, 1000), watermark=999)]
        result = flow.with_bindings(records, bounds, settings())
        self.assertEqual(reasons(result), {(0, 1): "late", (0, 3): "late"})
        self.assertEqual(result.errors, [])

    def test_nothing_is_late_by_the_watermark_of_its_own_epoch(self):
        records = [record(0, 0, 1000), record(0, 1, 1)]
        result = flow.with_bindings(records, [bound(1, (0, 2, 1000), watermark=999)], settings())
        self.assertEqual(reasons(result), {})

    def test_an_event_beyond_the_lesser_clock_plus_skew_is_future(self):
        t = 1_800_000_000_000
        time = {"max_out_of_orderness_ms": 0, "max_future_skew_ms": 10}
        records = [
            record(0, 0, t + 110, timestamp=t + 100),
            record(0, 1, t + 111, timestamp=t + 100),
            record(0, 2, t + 60, timestamp=t + 100),
            record(0, 3, t + 61, timestamp=t + 100),
            record(0, 4, t + 60),
            record(0, 5, t + 61, timestamp=-1),
        ]
        bounds = [
            bound(1, (0, 2, t + 110), watermark=t + 99, wall_ms=t + 500),
            bound(2, (0, 6, t + 60), watermark=t + 99, wall_ms=t + 50),
        ]
        result = flow.with_bindings(records, bounds, settings(time=time))
        self.assertEqual(
            reasons(result), {(0, 1): "future", (0, 2): "late", (0, 3): "future", (0, 4): "late", (0, 5): "future"}
        )
        self.assertEqual(result.errors, [])
        unjudged = flow.with_bindings(records, bounds, settings(time=time), judge_future=False)
        self.assertNotIn("future", reasons(unjudged).values())

    def test_undecodable_records_keep_reason_and_field(self):
        records = [record(0, 0, 1, event_type="x"), record(0, 1, 1, event_type=[])]
        result = flow.with_bindings(records, [bound(4, (0, 2, None))], settings())
        self.assertEqual(
            [(letter.reason, letter.field, letter.epoch) for letter in result.dead_letters],
            [("invalid", "event_type", 4), ("malformed", "event_type", 4)],
        )

    def test_a_malformed_optional_field_is_absent_unless_strict(self):
        records = [record(0, 0, 1, amount="x"), record(0, 1, 1, amount=[])]
        result = flow.with_bindings(records, [bound(4, (0, 2, 1), watermark=0)], settings())
        self.assertEqual((result.dead_letters, result.errors), ([], []))
        strict = settings(source={"strict_fields": True})
        result = flow.with_bindings(records, [bound(4, (0, 2, None))], strict)
        self.assertEqual(reasons(result), {(0, 0): "invalid", (0, 1): "malformed"})


class Duplicates(unittest.TestCase):
    def duplicates(self, records, bounds=None, horizon=60):
        given = settings(dedup_horizon_ms=horizon, time={"max_out_of_orderness_ms": 10_000})
        result = flow.with_bindings(records, bounds, given) if bounds else flow.without_epochs(records, given)
        return [position for position, reason in reasons(result).items() if reason == "duplicate"]

    def test_the_horizon_is_inclusive_in_both_directions(self):
        times = [1000, 1060, 940, 1061, 939]
        records = [record(0, offset, time, event_id="a") for offset, time in enumerate(times)]
        bounds = [bound(epoch, (0, epoch, times[epoch - 1])) for epoch in range(1, 6)]
        self.assertEqual(self.duplicates(records, bounds), [(0, 1), (0, 2)])

    def test_a_duplicate_does_not_make_others_duplicates(self):
        records = [record(0, offset, time, event_id="a") for offset, time in enumerate([1000, 1050, 1100])]
        self.assertEqual(self.duplicates(records), [(0, 1)])

    def test_duplicates_are_resolved_by_epoch_then_time_then_partition(self):
        two = [record(0, 0, 1000, event_id="a"), record(1, 0, 990, event_id="a")]
        self.assertEqual(self.duplicates(two, [bound(1, (0, 1, 1000)), bound(2, (1, 1, 990))]), [(1, 0)])
        self.assertEqual(self.duplicates(two, [bound(1, (0, 1, 1000), (1, 1, 990))]), [(0, 0)])
        tie = [record(1, 0, 1000, event_id="a"), record(0, 9, 1000, event_id="a")]
        self.assertEqual(self.duplicates(tie), [(1, 0)])

    def test_another_key_or_kind_of_key_is_no_duplicate(self):
        records = [
            record(0, 0, 1000, event_id="a", user="x"),
            record(0, 1, 1000, event_id="a", user="y"),
            record(0, 2, 1000, event_id="a", event_type="iot_sensor", device_id="x"),
        ]
        self.assertEqual(self.duplicates(records), [])

    def test_a_horizon_of_zero_disables_deduplication(self):
        records = [record(0, offset, 1000, event_id="a") for offset in (0, 1)]
        self.assertEqual(self.duplicates(records, horizon=0), [])

    def test_a_late_event_does_not_count_for_deduplication(self):
        records = [record(0, 0, 1000), record(0, 1, 900, event_id="a"), record(0, 2, 1001, event_id="a")]
        bounds = [bound(1, (0, 1, 1000), watermark=999), bound(2, (0, 3, 1001), watermark=1000)]
        result = flow.with_bindings(records, bounds, settings(dedup_horizon_ms=500))
        self.assertEqual(reasons(result), {(0, 1): "late"})


class BindingErrors(unittest.TestCase):
    def errors(self, records, *bounds):
        return flow.with_bindings(records, bounds, settings()).errors

    def test_a_wrong_watermark_or_greatest_time_is_reported(self):
        (error,) = self.errors([record(0, 0, 10)], bound(1, (0, 1, 10), watermark=10))
        self.assertIn("W is 9", error)
        (error,) = self.errors([record(0, 0, 10)], bound(1, (0, 1, 11), watermark=9))
        self.assertIn("greatest event time is 10", error)
        (error,) = self.errors([record(0, 0, 10)], bound(1, (0, 1, None), watermark=9))
        self.assertIn("greatest event time is 10", error)

    def test_ends_and_epochs_must_not_decrease(self):
        records = [record(0, 0, 10), record(0, 1, 10)]
        errors = self.errors(records, bound(1, (0, 2, 10), watermark=9), bound(2, (0, 1, None), watermark=9))
        self.assertEqual(len(errors), 1)
        errors = self.errors(records, bound(2, (0, 2, 10), watermark=9), bound(2, watermark=9))
        self.assertEqual(len(errors), 1)

    def test_the_last_record_of_a_binding_must_match_its_timestamp(self):
        ends_with = bound(1, (0, 2, 10), watermark=9)
        ends_with.bindings[0].timestamp = 77
        records = [record(0, 0, 10, timestamp=70), record(0, 1, 10, timestamp=77)]
        self.assertEqual(self.errors(records, ends_with), [])
        records[1].timestamp = 78
        self.assertIn("timestamp 78", self.errors(records, ends_with)[0])
        self.assertIn("with 0:1, which is missing", self.errors(records[:1], ends_with)[0])


if __name__ == "__main__":
    unittest.main()
