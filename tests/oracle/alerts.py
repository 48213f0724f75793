"""Alerts: the matches of the patterns, and the epochs in which they are raised and revoked."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from operator import attrgetter

from patterns import PATTERNS

RULE_VERSION = 1

ORDER = attrgetter("order")


@dataclass(frozen=True)
class Change:
    """An alert raised or revoked in an epoch. `final` is true if it can no longer be revoked."""

    alert_id: str
    epoch: int
    status: str
    rule: str
    event: object
    match: object
    final: bool


def changes(flow, settings, emission=None):
    """Returns every change of every alert, by epoch; `emission` overrides the emission of the patterns."""
    found = []
    for rule, config in settings.patterns.items():
        evaluate = final if (emission or config["emit"]) == "final" else immediate
        for epoch, status, event, match in evaluate(flow, rule, config):
            alert_id = identity(settings.pipeline, rule, event)
            found.append(Change(alert_id, epoch, status, rule, event, match, evaluate is final))
    found.sort(key=lambda change: (change.epoch, change.alert_id))
    return found


def identity(pipeline, rule, event, version=RULE_VERSION):
    """Returns the first 16 bytes, in hex, of SHA-256 over the parts, each after its length (4 bytes, big-endian)."""
    parts = (pipeline, rule, version, event.kind, event.key, event.partition, event.offset)
    hashed = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8")
        hashed.update(len(text).to_bytes(4, "big") + text)
    return hashed.digest()[:16].hex()


def final(flow, rule, config):
    """Yields each match once, in the first epoch whose watermark has reached it."""
    by_key = defaultdict(list)
    for event in flow.accepted:
        by_key[event.kind, event.key].append(event)
    for events in by_key.values():
        run = KeyRun(rule, config)
        run.process(sorted(events, key=ORDER))
        for event, match in run.matches.values():
            epoch = flow.first_epoch_reaching(event.time)
            if epoch is not None:
                yield epoch, "raised", event, match


def immediate(flow, rule, config):
    """Yields, after each epoch, the differences between the new and the previous matches of each key."""
    runs = defaultdict(lambda: KeyRun(rule, config))
    for epoch, batch in flow.arrivals():
        by_key = defaultdict(list)
        for event in batch:
            by_key[event.kind, event.key].append(event)
        for key, events in by_key.items():
            run = runs[key]
            if not run.events or run.events[-1].order < events[0].order:
                for position in run.process(events):
                    yield epoch, "raised", *run.matches[position]
                continue
            # Out of order: the key's history is evaluated again.
            now = runs[key] = KeyRun(rule, config)
            now.process(sorted(run.events + events, key=ORDER))
            for position, (event, match) in now.matches.items():
                if position not in run.matches or run.matches[position][1] != match:
                    yield epoch, "raised", event, match
            for position in run.matches.keys() - now.matches.keys():
                yield epoch, "revoked", *run.matches[position]


class KeyRun:
    """A pattern over one key's events, in order, with the events so far and the matches by the event's position."""

    def __init__(self, rule, config):
        self.pattern = PATTERNS[rule](config)
        self.events = []
        self.matches = {}

    def process(self, events):
        """Processes further events and returns the positions of those that match."""
        found = []
        for event in events:
            self.events.append(event)
            match = self.pattern.step(event)
            if match is not None:
                position = (event.partition, event.offset)
                self.matches[position] = (event, match)
                found.append(position)
        return found
