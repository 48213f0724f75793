"""Tests of the five patterns, on both sides of each bound."""

import math
import unittest
from fractions import Fraction

import config
import patterns
from fixtures import event


def matches(rule, events, **given):
    """Returns (index, match) of the events that match."""
    pattern = patterns.PATTERNS[rule](config.pattern(rule, given))
    found = [(index, pattern.step(one)) for index, one in enumerate(events)]
    return [(index, match) for index, match in found if match is not None]


def found_at(rule, events, **given):
    return [index for index, _ in matches(rule, events, **given)]


def times(*given):
    return [event(time, offset) for offset, time in enumerate(given)]


class Frequency(unittest.TestCase):
    def test_more_than_100_in_an_hour_matches_at_event_101(self):
        hour = 3_600_000
        ((index, match),) = matches("velocity_spike", times(*range(150)))
        self.assertEqual((index, match.severity), (100, "high"))
        self.assertEqual(dict(match.details), {"count": 101, "within_ms": hour})
        self.assertEqual(found_at("velocity_spike", times(*range(100), hour - 1)), [100])
        self.assertEqual(found_at("velocity_spike", times(*range(100), hour)), [])

    def test_an_event_exactly_ten_seconds_ago_does_not_count(self):
        self.assertEqual(found_at("rapid_fire_burst", times(*range(9), 9_999)), [9])
        self.assertEqual(found_at("rapid_fire_burst", times(*range(9), 10_000)), [])

    def test_it_matches_again_only_after_the_condition_was_false(self):
        burst = {"at_least": 2, "within_ms": 10}
        self.assertEqual(found_at("rapid_fire_burst", times(0, 5, 9, 15, 25, 26), **burst), [1, 5])

    def test_the_first_event_can_be_an_edge(self):
        self.assertEqual(found_at("rapid_fire_burst", times(0, 1), at_least=1), [0])

    def test_events_of_one_instant_are_processed_one_by_one(self):
        ((index, match),) = matches("rapid_fire_burst", times(7, 7, 7), at_least=2)
        self.assertEqual((index, dict(match.details)["count"]), (1, 2))


class Diversity(unittest.TestCase):
    @staticmethod
    def visits(*given):
        return [event(time, offset, **({"merchant_id": m} if m else {})) for offset, (time, m) in enumerate(given)]

    def test_eight_distinct_merchants_within_an_hour(self):
        visits = [(index, f"m{index}") for index in range(7)]
        ((index, match),) = matches("merchant_diversity", self.visits(*visits, (3_599_999, "m7")))
        self.assertEqual((index, match.severity), (7, "medium"))
        self.assertEqual(dict(match.details), {"distinct": 8, "within_ms": 3_600_000})
        self.assertEqual(found_at("merchant_diversity", self.visits(*visits, (3_600_000, "m7"))), [])
        self.assertEqual(found_at("merchant_diversity", self.visits(*visits, (8, "m6"), (9, "m0"))), [])

    def test_the_first_merchant_can_be_an_edge(self):
        self.assertEqual(found_at("merchant_diversity", self.visits((0, "a"), (1, "b")), at_least=1), [0])

    def test_a_merchant_counts_by_its_last_visit(self):
        visits = self.visits((0, "a"), (5, "b"), (8, "a"), (12, "c"))
        self.assertEqual(found_at("merchant_diversity", visits, at_least=3, within_ms=10), [3])

    def test_events_without_a_merchant_do_not_end_the_edge(self):
        visits = self.visits((0, "a"), (1, "b"), (20, None), (9, "a"), (30, "a"), (31, "b"))
        self.assertEqual(found_at("merchant_diversity", visits, at_least=2, within_ms=10), [1, 5])


class Outlier(unittest.TestCase):
    @staticmethod
    def amounts(*given, **fields):
        return [event(offset, offset, amount=amount, **fields) for offset, amount in enumerate(given)]

    def test_thirty_earlier_amounts_are_needed(self):
        self.assertEqual(found_at("amount_anomaly", self.amounts(*[9, 11] * 15, 100)), [30])
        self.assertEqual(found_at("amount_anomaly", self.amounts(*([9, 11] * 15)[1:], 100)), [])

    def test_exactly_three_sigmas_are_not_beyond_three(self):
        # 8, 12, 10: mean 10, variance (4 + 4 + 0) ÷ 2 = 4, deviation 2.
        given = {"at_least": 3}
        self.assertEqual(found_at("amount_anomaly", self.amounts(8, 12, 10, 16), **given), [])
        ((index, match),) = matches("amount_anomaly", self.amounts(8, 12, 10, "16.000001"), **given)
        self.assertEqual((index, match.severity), (3, "medium"))
        self.assertEqual(
            dict(match.details), {"amount": "16.000001", "mean": 10.0, "stddev": 2.0, "sigmas": 3.0, "n": 3}
        )
        self.assertEqual(found_at("amount_anomaly", self.amounts(8, 12, 10, "3.999999"), **given), [3])

    def test_beyond_five_sigmas_it_is_at_least_high(self):
        def severity(amount, **given):
            ((_, match),) = matches("amount_anomaly", self.amounts(8, 12, 10, amount), at_least=3, **given)
            return match.severity

        self.assertEqual([severity(20), severity("20.000001")], ["medium", "high"])
        self.assertEqual(severity(100, severity="critical"), "critical")

    def test_an_outlier_enters_the_statistics_afterwards(self):
        # After 8, 12, 10, 100 the mean is 32.5 and the deviation 45.0: 100 again is within.
        self.assertEqual(found_at("amount_anomaly", self.amounts(8, 12, 10, 100, 100), at_least=3), [3])

    def test_the_deviation_is_not_below_its_floor(self):
        # The deviation of 0.50, 0.51 and 0.52 is 0.01, as is the absolute floor; the relative floor is half of that.
        for last, found in (("0.54", []), ("0.540001", [3])):
            self.assertEqual(found_at("amount_anomaly", self.amounts("0.5", "0.52", "0.51", last), at_least=3), found)
            self.assertEqual(found_at("amount_anomaly", self.amounts(*["0.51"] * 3, last), at_least=3), found)
        # With a mean of 10.00, the floor is 0.10.
        for last, found in (("10.01", []), ("10.30", []), ("9.70", []), ("10.300001", [40]), ("9.699999", [40])):
            self.assertEqual(found_at("amount_anomaly", self.amounts(*[10] * 40, last)), found)
        ((_, match),) = matches("amount_anomaly", self.amounts(*[10] * 40, 10_000))
        said = {"amount": "10000", "mean": 10.0, "stddev": 0.1, "sigmas": 99_900.0, "n": 40}
        self.assertEqual((match.severity, dict(match.details)), ("high", said))

    def test_without_any_floor_equal_amounts_match_nothing(self):
        given = {"min_sigma": Fraction(0), "min_relative_sigma": Fraction(0)}
        self.assertEqual(found_at("amount_anomaly", self.amounts(*[10] * 40, 11), **given), [])

    def test_the_amount_has_all_its_digits(self):
        ((_, match),) = matches("amount_anomaly", self.amounts(*[10] * 40, "1234567.89"))
        self.assertEqual(dict(match.details)["amount"], "1234567.89")

    def test_currencies_are_separate_only_with_per_currency(self):
        events = self.amounts(8, 12, 10, currency="EUR") + [event(9, 9, amount=100, currency="JPY")]
        self.assertEqual(found_at("amount_anomaly", events, at_least=3), [3])
        self.assertEqual(found_at("amount_anomaly", events, at_least=3, per_currency=True), [])


class Travel(unittest.TestCase):
    @staticmethod
    def trip(*given):
        places = [None if place is None else {"lat": place[0], "lon": place[1]} for _, place in given]
        return [
            event(time, offset, event_id=f"e{offset}", location=place)
            for offset, ((time, _), place) in enumerate(zip(given, places))
        ]

    def test_distance_and_speed_must_both_be_beyond_their_bounds(self):
        # A degree of latitude is 111.195 km, which at 900 km/h takes 444.78 s.
        ((index, match),) = matches("impossible_travel", self.trip((0, (0, 0)), (444_000, (1, 0))))
        self.assertEqual((index, match.severity, match.events_before), (1, "critical", ("e0",)))
        self.assertEqual(dict(match.details), {"km": 111.195, "seconds": 444.0, "kmh": 901.582})
        self.assertEqual(found_at("impossible_travel", self.trip((0, (0, 0)), (445_000, (1, 0)))), [])
        # 0.449 degrees are 49.93 km, 0.45 are 50.04.
        self.assertEqual(found_at("impossible_travel", self.trip((0, (0, 0)), (1000, (0.449, 0)))), [])
        self.assertEqual(found_at("impossible_travel", self.trip((0, (0, 0)), (1000, (0.45, 0)))), [1])

    def test_travel_in_zero_time_is_infinitely_fast(self):
        ((_, match),) = matches("impossible_travel", self.trip((5, (0, 0)), (5, (0, 1))))
        self.assertIsNone(dict(match.details)["kmh"])

    def test_each_event_is_compared_with_the_previous_located_one(self):
        trip = self.trip((0, (0, 0)), (1, (9, 9)), (2, None), (3, (0, 0)), (4, (0, 0)))
        found = matches("impossible_travel", trip)
        self.assertEqual([(index, match.events_before) for index, match in found], [(1, ("e0",)), (3, ("e1",))])

    def test_distances_over_the_date_line_a_pole_and_half_the_earth(self):
        def km(*places):
            here, there = self.trip(*((0, place) for place in places))
            return patterns.haversine_km(here, there)

        half = math.pi * patterns.EARTH_RADIUS_KM
        self.assertAlmostEqual(km((0, 179.5), (0, -179.5)), half / 180, 6)
        self.assertAlmostEqual(km((89.5, 0), (89.5, 180)), half / 180, 6)
        self.assertAlmostEqual(km((0, 0), (0, 180)), half, 6)
        self.assertEqual(km((48.85, 2.35), (48.85, 2.35)), 0)


if __name__ == "__main__":
    unittest.main()
