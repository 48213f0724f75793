"""The five patterns: state machines that process a key's events one by one, in order.

`step(event)` returns a Match or None. "The last D" at an event of time t is (t − D, t], of the events processed so
far.
"""

import math
from collections import Counter, deque
from dataclasses import dataclass
from fractions import Fraction

from config import SEVERITIES

MICRO = 10**6
EARTH_RADIUS_KM = 6371.0088


@dataclass(frozen=True)
class Match:
    """A match at an event: the severity, the earlier events that belong to it, and the details."""

    severity: str
    events_before: tuple
    details: tuple


class Frequency:
    """Velocity spike and rapid-fire burst: a number of events within a time, on the rising edge."""

    def __init__(self, config):
        self.config = config
        self.times = deque()
        self.held = False

    def step(self, event):
        within = self.config["within_ms"]
        self.times.append(event.time)
        while self.times[0] <= event.time - within:
            self.times.popleft()
        held, self.held = self.held, len(self.times) >= self.config["at_least"]
        if self.held and not held:
            return Match(self.config["severity"], (), (("count", len(self.times)), ("within_ms", within)))
        return None


class Diversity:
    """Merchant diversity: a number of distinct merchants within a time, on the rising edge."""

    def __init__(self, config):
        self.config = config
        self.seen = deque()
        self.merchants = Counter()
        self.held = False

    def step(self, event):
        if event.merchant_id is None:
            return None
        within = self.config["within_ms"]
        self.seen.append(event)
        self.merchants[event.merchant_id] += 1
        while self.seen[0].time <= event.time - within:
            gone = self.seen.popleft().merchant_id
            self.merchants[gone] -= 1
            if self.merchants[gone] == 0:
                del self.merchants[gone]
        held, self.held = self.held, len(self.merchants) >= self.config["at_least"]
        if self.held and not held:
            return Match(
                self.config["severity"], (), (("distinct", len(self.merchants)), ("within_ms", within))
            )
        return None


class Outlier:
    """Amount anomaly: an amount too many sample deviations from the mean of the key's earlier amounts.

    With n earlier amounts of sum S and sum of squares Q, the variance is (n·Q − S²) ÷ (n·(n − 1)); all comparisons use
    integers and fractions. The deviation is at least the greater of `min_sigma` and `min_relative_sigma` times the
    absolute mean.
    """

    def __init__(self, config):
        self.config = config
        self.earlier = {}  # n, S and Q, by currency if `per_currency`

    def step(self, event):
        if event.amount is None:
            return None
        group = event.currency if self.config["per_currency"] else None
        n, total, squares = self.earlier.get(group, (0, 0, 0))
        self.earlier[group] = (n + 1, total + event.amount, squares + event.amount**2)
        return self.judge(event.amount, n, total, squares)

    def judge(self, amount, n, total, squares):
        if n < max(2, self.config["at_least"]):
            return None
        variance = Fraction(n * squares - total * total, n * (n - 1))
        mean = Fraction(total, n)
        floor = max(self.config["min_sigma"] * MICRO, self.config["min_relative_sigma"] * abs(mean))
        variance = max(variance, floor**2)
        if variance == 0:
            return None
        squared_sigmas = (amount - mean) ** 2 / variance
        if squared_sigmas <= self.config["sigmas"] ** 2:
            return None
        severity = self.config["severity"]
        if squared_sigmas > self.config["high_sigmas"] ** 2:
            severity = max(severity, "high", key=SEVERITIES.index)
        details = (
            ("amount", exact(amount)),
            ("mean", round6(float(mean / MICRO))),
            ("stddev", round6(math.sqrt(variance) / MICRO)),
            ("sigmas", round6(math.sqrt(squared_sigmas))),
            ("n", n),
        )
        return Match(severity, (), details)


class Travel:
    """Impossible travel: too far from the key's previous located event, and too fast."""

    def __init__(self, config):
        self.config = config
        self.previous = None

    def step(self, event):
        if event.lat is None:
            return None
        before, self.previous = self.previous, event
        if before is None:
            return None
        km = haversine_km(before, event)
        seconds = (event.time - before.time) / 1000
        kmh = km / seconds * 3600 if seconds > 0 else math.inf
        if km <= self.config["more_than_km"] or kmh <= self.config["more_than_kmh"]:
            return None
        details = (
            ("km", round6(km)),
            ("seconds", round6(seconds)),
            ("kmh", None if kmh == math.inf else round6(kmh)),
        )
        return Match(self.config["severity"], (before.event_id,), details)


PATTERNS = {
    "velocity_spike": Frequency,
    "rapid_fire_burst": Frequency,
    "merchant_diversity": Diversity,
    "amount_anomaly": Outlier,
    "impossible_travel": Travel,
}


def haversine_km(here, there):
    """Returns the distance between two located events on a sphere of the earth's mean radius."""
    lat, other_lat = math.radians(here.lat), math.radians(there.lat)
    d_lat, d_lon = other_lat - lat, math.radians(there.lon) - math.radians(here.lon)
    h = math.sin(d_lat / 2) ** 2 + math.cos(lat) * math.cos(other_lat) * math.sin(d_lon / 2) ** 2
    return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(min(1.0, h)))


def exact(amount):
    """Formats an amount of millionths as a decimal text with all its digits, without trailing zeros."""
    whole, fraction = divmod(abs(amount), MICRO)
    return ("-" if amount < 0 else "") + f"{whole}.{fraction:06}".rstrip("0").rstrip(".")


def round6(value):
    """Rounds to six significant digits."""
    return float(f"{value:.6g}")
