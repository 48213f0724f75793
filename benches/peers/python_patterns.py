"""The five patterns of one user, and a tumbling window of a minute, for the engines whose jobs are in Python."""

import json
import math
from collections import OrderedDict, deque

HOUR_MS = 3_600_000
BURST_MS = 10_000
MINUTE_MS = 60_000
EARTH_RADIUS_KM = 6371.0088


class KeyState:
    """The state is bounded by the thresholds: the last 101 times, and the eight merchants that were seen last."""

    __slots__ = (
        "times", "velocity_held", "burst_held", "merchants", "diversity_held", "amounts", "mean", "squares", "located",
        "window", "count", "sum", "min", "max",
    )  # fmt: skip

    def __init__(self):
        self.times = deque(maxlen=101)
        self.merchants = OrderedDict()  # the time of each, the least recent first
        self.velocity_held = self.burst_held = self.diversity_held = False
        self.amounts, self.mean, self.squares = 0, 0.0, 0.0
        self.located = None
        self.window = None

    def process(self, event):
        """Processes an event, in the order of event time. Returns the rules that it raises, with their severities."""
        raised = []
        time = event["event_time"]
        self.count_event(time, raised)
        merchant = event.get("merchant_id")
        if merchant is not None:
            self.count_merchant(merchant, time, raised)
        amount = event.get("amount")
        if amount is not None:
            self.judge_amount(amount, raised)
        location = event.get("location")
        if location is not None:
            self.judge_travel(time, math.radians(location["lat"]), math.radians(location["lon"]), raised)
        return raised

    def count_event(self, time, raised):
        times = self.times
        times.append(time)
        held = len(times) == 101 and times[0] > time - HOUR_MS
        if held and not self.velocity_held:
            raised.append(("velocity_spike", "high"))
        self.velocity_held = held
        held = len(times) >= 10 and times[-10] > time - BURST_MS
        if held and not self.burst_held:
            raised.append(("rapid_fire_burst", "high"))
        self.burst_held = held

    def count_merchant(self, merchant, time, raised):
        merchants = self.merchants
        merchants[merchant] = time
        merchants.move_to_end(merchant)
        if len(merchants) > 8:
            merchants.popitem(last=False)
        held = len(merchants) == 8 and next(iter(merchants.values())) > time - HOUR_MS
        if held and not self.diversity_held:
            raised.append(("merchant_diversity", "medium"))
        self.diversity_held = held

    def judge_amount(self, amount, raised):
        """Compares an amount with the mean of those before it, then adds it, after Welford."""
        if self.amounts >= 30:
            floor = max(0.01, 0.01 * abs(self.mean))
            sigma = max(math.sqrt(max(self.squares / (self.amounts - 1), 0)), floor)
            distance = abs(amount - self.mean)
            if distance > 3 * sigma:
                raised.append(("amount_anomaly", "high" if distance > 5 * sigma else "medium"))
        delta = amount - self.mean
        self.amounts += 1
        self.mean += delta / self.amounts
        self.squares += delta * (amount - self.mean)

    def judge_travel(self, time, latitude, longitude, raised):
        before, self.located = self.located, (time, latitude, longitude)
        if before is None or before[1:] == self.located[1:]:
            return
        north, east = math.sin((latitude - before[1]) / 2), math.sin((longitude - before[2]) / 2)
        h = north * north + math.cos(before[1]) * math.cos(latitude) * east * east
        kilometres = 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(h)))
        hours = (time - before[0]) / HOUR_MS
        if kilometres > 50 and (hours == 0 or kilometres / hours > 900):
            raised.append(("impossible_travel", "critical"))

    def add_to_window(self, event):
        """Adds an event to the window of its minute. Returns the window before if it is closed thereby: start, number of
        events, and sum, least and greatest of their amounts."""
        start = event["event_time"] // MINUTE_MS * MINUTE_MS
        closed = None
        if start != self.window:
            closed = self.close_window()
            self.window, self.count, self.sum, self.min, self.max = start, 0, 0.0, math.inf, -math.inf
        self.count += 1
        amount = event.get("amount")
        if amount is not None:
            self.sum += amount
            if amount < self.min:
                self.min = amount
            if amount > self.max:
                self.max = amount
        return closed

    def close_window(self):
        """Returns the open window, if there is one. Afterwards none is open."""
        if self.window is None:
            return None
        closed, self.window = (self.window, self.count, self.sum, self.min, self.max), None
        return closed


def alert(rule, severity, user, event_id, time):
    """Returns an alert as JSON, as all engines write it."""
    return json.dumps(
        {
            "alert_id": f"{rule}:1:{user}:{event_id}",
            "status": "raised",
            "rule": rule,
            "rule_version": 1,
            "severity": severity,
            "key": user,
            "event_ids": [event_id],
            "event_time": time,
        },
        separators=(",", ":"),
    )
