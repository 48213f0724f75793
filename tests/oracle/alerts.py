"""Alerts: what the patterns found, when it was said, and when it was taken back."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from operator import attrgetter

from patterns import PATTERNS

RULE_VERSION = 1

ORDER = attrgetter("order")


@dataclass(frozen=True)
class Change:
    """An alert raised or revoked in an epoch. `final` says that it can no longer be revoked."""

    alert_id: str
    epoch: int
    status: str
    rule: str
    event: object
    match: object
    final: bool


def changes(flow, settings, emission=None):
    """Every change of every alert, by epoch; `emission` overrides the patterns' own."""
    found = []
    for rule, config in settings.patterns.items():
        said = final if (emission or config["emit"]) == "final" else immediate
        for epoch, status, event, match in said(flow, rule, config):
            alert_id = identity(settings.pipeline, rule, event)
            found.append(Change(alert_id, epoch, status, rule, event, match, said is final))
    found.sort(key=lambda change: (change.epoch, change.alert_id))
    return found


def identity(pipeline, rule, event):
    """The first 16 bytes, in hex, of SHA-256 over the parts, each after its length in four bytes, greatest first."""
    parts = (pipeline, rule, RULE_VERSION, event.kind, event.key, event.partition, event.offset)
    hashed = hashlib.sha256()
    for part in parts:
        text = str(part).encode("utf-8")
        hashed.update(len(text).to_bytes(4, "big") + text)
    return hashed.digest()[:16].hex()


def final(flow, rule, config):
    """Each match once, in the first epoch whose watermark has reached it."""
    by_key = defaultdict(list)
    for event in flow.accepted:
        by_key[event.kind, event.key].append(event)
    for events in by_key.values():
        run = Run(rule, config)
        run.look_at(sorted(events, key=ORDER))
        for event, match in run.matches.values():
            epoch = flow.settled(event.time)
            if epoch is not None:
                yield epoch, "raised", event, match


def immediate(flow, rule, config):
    """After each epoch, what the matches of each key are now, against what they were."""
    runs = defaultdict(lambda: Run(rule, config))
    for epoch, batch in flow.arrivals():
        by_key = defaultdict(list)
        for event in batch:
            by_key[event.kind, event.key].append(event)
        for key, events in by_key.items():
            run = runs[key]
            if not run.events or run.events[-1].order < events[0].order:
                for position in run.look_at(events):
                    yield epoch, "raised", *run.matches[position]
                continue
            # Out of order: the key's history is evaluated anew.
            now = runs[key] = Run(rule, config)
            now.look_at(sorted(run.events + events, key=ORDER))
            for position, (event, match) in now.matches.items():
                if position not in run.matches or run.matches[position][1] != match:
                    yield epoch, "raised", event, match
            for position in run.matches.keys() - now.matches.keys():
                yield epoch, "revoked", *run.matches[position]


class Run:
    """A pattern over one key's events, in order: what it has looked at and found, by the event's position."""

    def __init__(self, rule, config):
        self.pattern = PATTERNS[rule](config)
        self.events = []
        self.matches = {}

    def look_at(self, events):
        """Looks at further events, and says at the positions of which it found something."""
        found = []
        for event in events:
            self.events.append(event)
            match = self.pattern.look(event)
            if match is not None:
                position = (event.partition, event.offset)
                self.matches[position] = (event, match)
                found.append(position)
        return found
