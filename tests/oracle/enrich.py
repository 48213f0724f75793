"""Enrichment: the history of an event's key when the event arrived."""

from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction

from patterns import MICRO, haversine_km, round6


@dataclass
class Enrichment:
    """The fields that describe a key's history up to and including an event, in order of arrival."""

    key_events: int
    key_amount_mean: float | None
    since_previous_ms: int | None
    km_from_previous: float | None


class History:
    """The history of a key."""

    def __init__(self):
        self.events = self.amounts = self.amount_sum = 0
        self.previous = self.located = None

    def update(self, event):
        self.events += 1
        if event.amount is not None:
            self.amounts += 1
            self.amount_sum += event.amount
        mean = round6(float(Fraction(self.amount_sum, self.amounts * MICRO))) if self.amounts else None
        since = None if self.previous is None else event.time - self.previous.time
        self.previous = event
        km = None
        if event.lat is not None:
            if self.located is not None:
                km = round6(haversine_km(self.located, event))
            self.located = event
        return Enrichment(self.events, mean, since, km)


def enriched(flow):
    """Yields each accepted event with its enrichment, in order of arrival."""
    histories = defaultdict(History)
    for event in flow.accepted:
        yield event, histories[event.kind, event.key].update(event)


def amount_band(amount):
    if amount is None:
        return "none"
    for limit in (10, 100, 1000, 10_000):
        if amount < limit * MICRO:
            return f"<{limit}"
    return ">=10000"
