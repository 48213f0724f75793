"""The conditions of rules of one's own, by brute force over the events of a key.

A condition judges the event at an index of a list: the events of a key that it considers, in order. Nothing is kept
from one event to the next except what the definition itself speaks of: the runs of a sequence.
"""

import bisect
import math
from dataclasses import dataclass
from fractions import Fraction

from own_fields import MICRO, decimal, rfc3339
from patterns import haversine_km, round6

# Of the runs that wait for an event that must not come, the number that is kept; likewise of the runs of each length.
KEPT = 8


@dataclass(slots=True)
class Entry:
    """An event that a condition considers, with the value of it that the condition looks at."""

    event: object
    value: object
    group: object = None


@dataclass(frozen=True)
class Match:
    """What was found: the position that names the alert, ids, time, and details."""

    position: tuple
    event_ids: tuple
    time: int
    details: tuple
    severity: str = "medium"


def within(history, index, span):
    """Returns the entries in (t − span, t], up to and including the index."""
    now = history[index].event.time
    first = index
    while first > 0 and history[first - 1].event.time > now - span:
        first -= 1
    return history[first : index + 1]


def at_event(event, before, details):
    return Match((event.partition, event.offset), (*before, event.event_id), event.time, tuple(details))


class Condition:
    """What all conditions have in common.

    A rule that follows another one, with other bounds, knows of the events before it what that one has remembered.
    """

    def kept(self, base, entries):
        """Returns what the condition remembers after entries that it has judged after `base`."""
        return (*base, *entries)

    def judge_after(self, base, entries):
        """Judges the last one of the entries, after what another version of the rule has left."""
        return self.judge([*base, *entries] if base else entries, len(base) + len(entries) - 1)

    def skips(self, entry):
        """Returns true if the condition does not look at an entry."""
        return False


class Every(Condition):
    """Each event."""

    on_edge = False

    def __init__(self, given, expression):
        pass

    def entry(self, event):
        return Entry(event, None)

    def judge(self, history, index):
        return at_event(history[index].event, (), ())


class Trailing(Condition):
    """A condition on the values of the events within a time, on the rising edge."""

    on_edge = True

    def __init__(self, given, expression):
        self.given = given
        self.span = given["within_ms"]
        self.of = expression(given["of"]) if "of" in given else lambda event: True
        bound = Fraction(given.get("more_than", given.get("at_least", 0))) * MICRO
        # Comparing whole numbers takes a tenth of the time.
        self.bound = bound.numerator if bound.denominator == 1 else bound

    def entry(self, event):
        value = self.of(event)
        return None if value is None else Entry(event, value)

    def judge(self, history, index):
        details = self.details([entry.value for entry in within(history, index, self.span)])
        if details is None:
            return None
        return at_event(history[index].event, (), (*details, ("within_ms", self.span)))

    def kept(self, base, entries):
        """The values of the time before the last event with a value."""
        known = [*base, *entries]
        return tuple(within(known, len(known) - 1, self.span)) if entries else base

    def reaches(self, number, count=1):
        """Returns true if a number satisfies the bound `more_than` or `at_least`, times a count."""
        if "more_than" in self.given:
            return number > self.bound * count
        return number >= self.bound * count


class Count(Trailing):
    """A number of events. The details have the threshold, even if more events are within the time."""

    @property
    def at_least(self):
        return self.given["at_least"] if "at_least" in self.given else self.given["more_than"] + 1

    def details(self, values):
        return (("count", self.at_least),) if len(values) >= self.at_least else None

    def kept(self, base, entries):
        """As many events as it counts."""
        return (*base, *entries)[-self.at_least :]


class Sum(Trailing):
    def details(self, values):
        total = sum(values)
        return (("sum", decimal(total)), ("n", len(values))) if self.reaches(total) else None


class Average(Trailing):
    def details(self, values):
        if len(values) < self.given.get("at_least_events", 1) or not self.reaches(sum(values), len(values)):
            return None
        return ("average", round6(float(Fraction(sum(values), len(values) * MICRO)))), ("n", len(values))


class Distinct(Trailing):
    def entry(self, event):
        # An event without a value changes no answer, but a rule with other bounds forgets at each event that it considers.
        return Entry(event, self.of(event))

    def skips(self, entry):
        return entry.value is None

    def judge(self, history, index):
        return None if self.skips(history[index]) else super().judge(history, index)

    def kept(self, base, entries):
        """As many distinct values as it counts, at the last event of each."""
        last = {entry.value: entry for entry in (*base, *entries) if entry.value is not None}
        return tuple(sorted(last.values(), key=lambda entry: entry.event.order)[-self.given["at_least"] :])

    def details(self, values):
        values = [value for value in values if value is not None]
        at_least = self.given["at_least"]
        return (("distinct", at_least),) if len(set(values)) >= at_least else None


class Share(Trailing):
    def entry(self, event):
        return Entry(event, self.of(event) is True)

    def details(self, values):
        hits, n = sum(values), len(values)
        if n < self.given["at_least_events"] or not hits > Fraction(self.given["more_than"]) * n:
            return None
        return ("share", round6(hits / n)), ("hits", hits), ("n", n)


class Outlier(Condition):
    """A number too many sample deviations from the mean of all earlier ones of its group."""

    on_edge = False
    DEFAULTS = {
        "sigmas": Fraction(3), "at_least": 30, "min_sigma": Fraction("0.01"), "min_relative_sigma": Fraction("0.01"),
    }  # fmt: skip

    def __init__(self, given, expression):
        self.given = {**self.DEFAULTS, **given}
        self.of = expression(given["of"])
        self.group = expression(given["group_by"]) if "group_by" in given else lambda event: ""

    def entry(self, event):
        # The events without a group are one, too.
        value = self.of(event)
        return None if value is None else Entry(event, value, self.group(event))

    def judge(self, history, index):
        this = history[index]
        earlier = [entry.value for entry in history[:index] if entry.group == this.group]
        n, total, given = len(earlier), sum(earlier), self.given
        if n < max(2, given["at_least"]):
            return None
        mean = Fraction(total, n)
        variance = Fraction(n * sum(value * value for value in earlier) - total * total, n * (n - 1))
        floor = max(Fraction(given["min_sigma"]) * MICRO, Fraction(given["min_relative_sigma"]) * abs(mean))
        variance = max(variance, floor**2)
        if variance == 0 or (this.value - mean) ** 2 <= Fraction(given["sigmas"]) ** 2 * variance:
            return None
        sigmas = math.sqrt((this.value - mean) ** 2 / variance)
        return at_event(this.event, (), (
            ("value", decimal(this.value)), ("mean", round6(float(mean / MICRO))), ("n", n),
            ("sigmas", round6(sigmas)), ("stddev", round6(math.sqrt(variance) / MICRO)),
        ))  # fmt: skip

    def severity(self, match, severity, ranks):
        high = self.given.get("high_sigmas")
        if high is not None and dict(match.details)["sigmas"] > high:
            return max(severity, "high", key=ranks.index)
        return severity


class Place:
    """A location as `haversine_km` takes it."""

    def __init__(self, location):
        self.lat, self.lon = location


class Travel(Condition):
    """Too far from the key's previous located event, and too fast."""

    on_edge = False

    def __init__(self, given, expression):
        self.km = given.get("more_than_km", 50)
        self.kmh = given.get("more_than_kmh", 900)

    def entry(self, event):
        location = event.fields.get("location")
        return None if location is None else Entry(event, Place(location))

    def judge(self, history, index):
        if index == 0:
            return None
        before, this = history[index - 1], history[index]
        km = haversine_km(before.value, this.value)
        seconds = (this.event.time - before.event.time) / 1000
        kmh = km / seconds * 3600 if seconds > 0 else math.inf
        if km <= self.km or kmh <= self.kmh:
            return None
        return at_event(this.event, (before.event.event_id,), (
            ("km", round6(km)), ("seconds", round6(seconds)), ("kmh", None if kmh == math.inf else round6(kmh)),
        ))  # fmt: skip


class Sequence(Condition):
    """Steps one after the other; with `not`, those that no further event followed.

    A run is the list of the events that it has taken. Each event of the first step starts one; a run takes each event of
    the step that it waits for.
    """

    on_edge = False

    def __init__(self, given, expression):
        self.span = given["within_ms"]
        steps = list(given["steps"])
        self.absent = expression(steps.pop()["not"]) if "not" in steps[-1] else None
        self.times = [step.get("times", 1) for step in steps]
        self.places = [expression(step["where"]) for step in steps for _ in range(step.get("times", 1))]

    def entry(self, event):
        """Only events of some step, or of the one that must not come, matter. The value has the runs after the event."""
        matters = self.absent is not None and self.absent(event) is True
        return Entry(event, None) if matters or any(place(event) is True for place in self.places) else None

    def is_live(self, run, event):
        return event.time - run[0].time < self.span

    def kept(self, base, entries):
        """The runs that have not ended."""
        runs = base
        for entry in entries:
            runs, _ = self.advance(runs, entry.event)
        return tuple(runs)

    def judge_after(self, base, entries):
        if not base:
            return self.judge(entries, len(entries) - 1)
        *earlier, last = entries
        _, completed = self.advance(self.kept(base, earlier), last.event)
        return self.match(completed)

    def judge(self, history, index):
        """Judges the event after the runs that the events within the time before it started."""
        first = bisect.bisect_right(history, history[index].event.time - self.span, key=lambda entry: entry.event.time)
        # Runs from before `first` have ended: none of their events is within the time.
        runs, completed = [], []
        for entry in history[first : index + 1]:
            runs, completed = self.advance(runs, entry.event)
        return self.match(completed)

    def match(self, completed):
        """Returns the result of an event that completes runs: that of the one that started last."""
        if not completed:
            return None
        run = max(completed, key=lambda run: run[0].order)
        seconds = (run[-1].time - run[0].time) / 1000
        details = (("steps", len(self.times)), ("seconds", round6(seconds)), ("within_ms", self.span))
        return at_event(run[-1], self.ids(run)[:-1], details)

    def advance(self, runs, event):
        """Returns the runs that go on after an event, and those that it completes. Runs end by time only when another one
        begins or goes on."""
        going, completed, changes = [], [], self.places[0](event) is True
        for run in (run for run in runs if self.is_live(run, event)):
            takes = self.places[len(run)](event) is True
            taken, changes = [*run, event] if takes else run, changes or takes
            (completed if len(taken) == len(self.places) else going).append(taken)
        if self.places[0](event) is True:
            (completed if len(self.places) == 1 else going).append([event])
        return (going if changes else runs), completed

    def ids(self, run):
        """Returns the ids of the first event and of those that completed a step, each once."""
        last, named = -1, [run[0].event_id]
        for times in self.times:
            last += times
            if run[last].event_id != named[-1]:
                named.append(run[last].event_id)
        return named

    def silences(self, history):
        """Returns the runs that waited in vain, by their ends."""
        runs, waiting, ended = [], [], []
        for event in (entry.event for entry in history):
            ended += [run for run in waiting if not self.is_live(run, event)]
            waiting = [run for run in waiting if self.is_live(run, event)]
            if self.absent(event) is True:
                waiting = []
            runs, completed = self.advance(runs, event)
            waiting = sorted(waiting + completed, key=lambda run: run[0].order)[:KEPT]
            runs = self.keep(runs)
        return sorted(ended + waiting, key=lambda run: run[0].order)

    def keep(self, runs):
        """Of the runs with the same number of events, keeps those that started last."""
        kept = []
        for length in {len(run) for run in runs}:
            kept += [run for run in runs if len(run) == length][-KEPT:]
        return sorted(kept, key=lambda run: run[0].order)

    def unfollowed(self, history):
        return [silence(run[0], self.ids(run), self.span) for run in self.silences(history)]


class Absence(Condition):
    """No event for a time after one."""

    on_edge = False
    absent = True

    def __init__(self, given, expression):
        self.span = given["within_ms"]

    def entry(self, event):
        return Entry(event, None)

    def unfollowed(self, history):
        following = [entry.event.time for entry in history[1:]] + [math.inf]
        return [
            silence(entry.event, (entry.event.event_id,), self.span)
            for entry, next_time in zip(history, following)
            if next_time - entry.event.time >= self.span
        ]


def silence(first, ids, span):
    details = (("since", rfc3339(first.time)), ("within_ms", span))
    return Match((first.partition, first.offset), tuple(ids), first.time + span, details)


CONDITIONS = {
    "match": Every, "count": Count, "sum": Sum, "average": Average, "distinct": Distinct, "share": Share,
    "outlier": Outlier, "travel": Travel, "sequence": Sequence, "absence": Absence,
}  # fmt: skip
