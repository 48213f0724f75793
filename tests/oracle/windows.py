"""Windows: the groups of a key's events, and their aggregates."""

import math
from dataclasses import dataclass
from fractions import Fraction

MICRO = 10**6
KINDS = {"user_id": ("user",), "device_id": ("device",), "key": ("user", "device")}


@dataclass
class Summary:
    """The aggregates of a window. Amounts are millionths; mean and deviation are in whole units.

    Sums and squares are exact; mean and deviation are the doubles nearest to the exact value, so an engine within 1e-9 of
    the exact value is within 1e-9 of these.
    """

    count: int
    amount_count: int
    amount_sum: int
    mean: float | None
    min: int | None
    max: int | None
    stddev: float | None
    distinct_merchants: int


def windows(window, events):
    """Returns start, end and events of each window of one key; `events` are in order of event time."""
    if window["kind"] == "session":
        return sessions(events, window["gap_ms"])
    size = window["size_ms"]
    return aligned(events, size, window.get("slide_ms", size))


def aligned(events, size, every):
    """Returns windows of `size` that start at every multiple of `every` since 1970: [start, start + size)."""
    found = {}
    for event in events:
        start = event.time // every * every
        while start + size > event.time:
            found.setdefault(start, []).append(event)
            start -= every
    return [(start, start + size, within) for start, within in sorted(found.items())]


def sessions(events, gap):
    """Returns sessions of events less than `gap` apart; a session ends `gap` after its last event."""
    found = []
    for event in events:
        if found and event.time - found[-1][-1].time < gap:
            found[-1].append(event)
        else:
            found.append([event])
    return [(session[0].time, session[-1].time + gap, session) for session in found]


def summary(events):
    amounts = [event.amount for event in events if event.amount is not None]
    n, total = len(amounts), sum(amounts)
    stddev = None
    if n >= 2:
        squares = sum(amount * amount for amount in amounts)
        stddev = math.sqrt(Fraction(n * squares - total * total, n * (n - 1))) / MICRO
    return Summary(
        count=len(events),
        amount_count=n,
        amount_sum=total,
        mean=float(Fraction(total, n * MICRO)) if n else None,
        min=min(amounts, default=None),
        max=max(amounts, default=None),
        stddev=stddev,
        distinct_merchants=len({event.merchant_id for event in events} - {None}),
    )
