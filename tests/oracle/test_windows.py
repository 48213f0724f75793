"""Tests of windows and their aggregates: small cases computed by hand."""

import unittest
from math import sqrt

import windows
from fixtures import event


def bounds(window, times):
    events = [event(time, offset) for offset, time in enumerate(times)]
    found = windows.windows(window, events)
    return [(start, end, [one.time for one in within]) for start, end, within in found]


class Kinds(unittest.TestCase):
    def test_tumbling_windows_hold_their_start_but_not_their_end(self):
        window = {"kind": "tumbling", "size_ms": 10}
        self.assertEqual(bounds(window, [0, 9, 10, 35]), [(0, 10, [0, 9]), (10, 20, [10]), (30, 40, [35])])

    def test_sliding_windows_start_at_multiples_also_before_1970(self):
        window = {"kind": "sliding", "size_ms": 10, "slide_ms": 4}
        self.assertEqual(
            bounds(window, [3, 12]),
            [(-4, 6, [3]), (0, 10, [3]), (4, 14, [12]), (8, 18, [12]), (12, 22, [12])],
        )

    def test_events_less_than_the_gap_apart_are_one_session(self):
        window = {"kind": "session", "gap_ms": 10}
        self.assertEqual(bounds(window, [0, 9, 18, 28, 28]), [(0, 28, [0, 9, 18]), (28, 38, [28, 28])])


class Summaries(unittest.TestCase):
    def test_amount_aggregates_ignore_events_without_an_amount(self):
        events = [
            event(0, amount="1.5", merchant_id="a"),
            event(1, merchant_id="b"),
            event(2, amount=-2, merchant_id="a"),
            event(3, amount="4"),
        ]
        summary = windows.summary(events)
        self.assertEqual((summary.count, summary.amount_count, summary.distinct_merchants), (4, 3, 2))
        self.assertEqual((summary.amount_sum, summary.min, summary.max), (3_500_000, -2_000_000, 4_000_000))
        self.assertAlmostEqual(summary.mean, 3.5 / 3, 12)
        # Squared distances from the mean 7/6: 1/9, 361/36 and 289/36.
        self.assertAlmostEqual(summary.stddev, sqrt((4 + 361 + 289) / 36 / 2), 12)

    def test_two_amounts_are_enough_for_a_deviation(self):
        self.assertAlmostEqual(windows.summary([event(0, amount=8), event(1, amount=14)]).stddev, sqrt(18), 12)

    def test_without_amounts_there_is_no_mean_and_with_one_no_deviation(self):
        summary = windows.summary([event(0)])
        self.assertEqual((summary.amount_sum, summary.mean, summary.min, summary.stddev), (0, None, None, None))
        summary = windows.summary([event(0, amount=3)])
        self.assertEqual((summary.mean, summary.stddev), (3.0, None))

    def test_a_small_deviation_of_large_amounts_is_exact(self):
        events = [event(0, amount=amount) for amount in ("999999999999.999999", "1e12", "999999999999.999998")]
        self.assertEqual(windows.summary(events).stddev, 1e-6)


if __name__ == "__main__":
    unittest.main()
