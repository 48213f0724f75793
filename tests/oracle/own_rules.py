"""The oracle of rules of one's own over events of one's own: `[fields]`, `[keys]` and `[[rules]]`.

    python3 tests/oracle/own_rules.py --config run.toml --files a.ndjson b.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle/own_rules.py --config run.toml --records records.ndjson --bindings bindings.ndjson --out expected

Like `__main__.py`, whose admission it uses, it computes the tables and topics of a run directly from the definitions: for
each rule and key it judges each admitted event by the list of those before it. CEL is not evaluated: each expression of
a configuration stands beside a function in own_expressions.py. The configuration has the rules with which the pipeline
began; the bindings have their changes: see own_versions.py.
"""

import argparse
import bisect
import json
import math
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import config
import flow
import outputs
import own_versions
import records
import windows
from alerts import identity
from config import SEVERITIES, in_milliseconds
from own_conditions import CONDITIONS, Absence
from own_expressions import expression
from own_fields import Schema, decimal


class Rule:
    """A section `[[rules]]`."""

    def __init__(self, given, find=expression):
        (name,) = given.keys() & CONDITIONS.keys()
        inner = given[name] if isinstance(given[name], dict) else {}
        # A field's name alone is an expression of it.
        self.condition = CONDITIONS[name](inner, lambda text: find(text if "." in text else f"event.{text}"))
        self.id = given["id"]
        self.by = given.get("by", "key")
        self.where = find(given["where"]) if "where" in given else lambda event: True
        self.suppress = given.get("suppress_ms")
        self.absence = getattr(self.condition, "absent", None) is not None or isinstance(self.condition, Absence)
        self.final = self.absence or given.get("emit") == "final"
        self.mode = given.get("mode", "live")
        severity = given.get("severity", "medium")
        self.severity_of = (lambda event: severity) if severity in SEVERITIES else find(severity)

    def entry(self, event):
        """Returns what the condition considers of an event; None if it does not."""
        return self.condition.entry(event) if self.where(event) is True else None

    def severity(self, event, match):
        severity = self.severity_of(event) or "medium"
        raised = getattr(self.condition, "severity", None)
        return severity if raised is None else raised(match, severity, SEVERITIES)

    def unfollowed(self, history):
        """Yields the results of an absence that are not suppressed."""
        until = -math.inf
        for match in self.condition.unfollowed(history):
            if match.time >= until:
                until = match.time + (self.suppress or -math.inf)
                yield match


class History:
    """The rules with one state over one key's events so far: the events that they consider, in order, and what was found
    at each by the version that judges it."""

    def __init__(self):
        self.entries = []
        self.versions = []  # by entry
        self.judged = []  # by entry

    def add(self, entries):
        """Adds entries with their versions, and judges each from the first new one on. Returns the results before and
        after, by position, with their versions."""
        before = len(self.entries)
        for version, entry in entries:
            at = bisect.bisect(self.entries, entry.event.order, key=lambda known: known.event.order)
            self.entries.insert(at, entry)
            self.versions.insert(at, version)
            before = min(before, at)
        gone = self.found(before)
        del self.judged[before:]
        for index in range(before, len(self.entries)):
            self.judged.append(self.judge(index))
        return gone, self.found(before)

    def found(self, start=0):
        found = (judged for judged in self.judged[start:] if judged.match is not None)
        return {judged.match.position: judged for judged in found}

    def judge(self, index):
        version, entry = self.versions[index], self.entries[index]
        rule, event = version.rule, entry.event
        before = self.judged[index - 1] if index > 0 else Judged(version, Memory(version))
        if rule.absence:
            return Judged(version, before.memory)
        memory = self.memory(before.memory, version, index)
        if memory.since == 0:
            match = rule.condition.judge(self.entries, index)
        else:
            match = rule.condition.judge_after(memory.base, self.entries[memory.since : index + 1])
        held = before.held if rule.condition.skips(entry) else match is not None
        judged = Judged(version, memory, held, before.until)
        if rule.suppress is None:
            is_raised = match is not None and not (before.held and rule.condition.on_edge)
        else:
            # No edge is needed: only the first result is at one, as nothing is suppressed before it.
            is_raised = match is not None and event.time >= before.until
            judged.until = event.time + rule.suppress if is_raised else before.until
        judged.match = event_match(rule, event, match) if is_raised else None
        return judged

    def memory(self, before, version, index):
        """Returns what a version knows before an entry."""
        if version.definition == before.version.definition:
            return before
        kept = before.version.rule.condition.kept(before.base, self.entries[before.since : index])
        return Memory(version, kept, index)


@dataclass(slots=True)
class Memory:
    """What is known before an entry: what earlier versions with another definition have left, and from which entry on
    all are judged by the same definition."""

    version: object
    base: tuple = ()
    since: int = 0


@dataclass(slots=True)
class Judged:
    """What was found at an entry."""

    version: object
    memory: Memory
    # True if the condition held at the last event that it looks at.
    held: bool = False
    # The end of the suppression.
    until: float = -math.inf
    match: object = None


def event_match(rule, event, match):
    return type(match)(
        match.position, match.event_ids, match.time, match.details, rule.severity(event, match)
    )


def alerts(result, sets, schema, pipeline):
    """Returns every change of every alert, as rows by epoch."""
    rows = []
    histories = defaultdict(History)  # by state and key
    entering = [(rules.epoch, version) for rules in sets for version in rules.versions if version.after is not None]
    arrivals = [*result.arrivals(), (math.inf, [])]
    seen = []
    for epoch, batch in arrivals:
        while entering and entering[0][0] < epoch:
            rows += enter(pipeline, *entering.pop(0), seen, schema, histories)
        seen += batch
        by_history = defaultdict(list)
        versions = own_versions.of_epoch(sets, epoch).versions
        for event in batch:
            for version in versions:
                key = schema.key(version.rule.by, event)
                entry = None if key is None else version.rule.entry(event)
                if entry is not None:
                    by_history[version.state, key].append((version, entry))
        for (state, key), entries in by_history.items():
            before, now = histories[state, key].add(entries)
            rows += changes(pipeline, key, epoch, before, now)
    for (state, key), history in histories.items():
        rows += finals(result, pipeline, sets, state, key, history)
    result.errors += incomplete(histories, result, schema, sets)
    return sorted(rows, key=lambda row: (row["epoch"], row["alert_id"]))


def enter(pipeline, epoch, version, seen, schema, histories):
    """Lets a rule judge all events so far. Yields what it finds at those after which the watermark may still come."""
    by_key = defaultdict(list)
    for event in seen:
        key = schema.key(version.rule.by, event)
        entry = None if key is None else version.rule.entry(event)
        if entry is not None:
            by_key[key].append((version, entry))
    for key, entries in by_key.items():
        before, now = histories[version.state, key].add(entries)
        now = {position: judged for position, judged in now.items() if not is_past(judged)}
        yield from changes(pipeline, key, epoch, before, now)


def is_past(judged):
    after = judged.version.after
    return after is not None and judged.match.time <= after


def changes(pipeline, key, epoch, before, now):
    """Yields the changes of the results that do not wait for the watermark."""
    for position, judged in now.items():
        was = before.get(position)
        if not judged.version.rule.final and (was is None or was.match != judged.match):
            yield alert(pipeline, judged.version, key, epoch, "raised", judged.match)
    for position in before.keys() - now.keys():
        if not before[position].version.rule.final:
            yield alert(pipeline, before[position].version, key, epoch, "revoked", before[position].match)


def finals(result, pipeline, sets, state, key, history):
    """Yields the results that the watermark has reached. An absence is not emitted once the rule is removed."""
    for judged in history.found().values():
        epoch = result.first_epoch_reaching(judged.match.time)
        if judged.version.rule.final and epoch is not None and not is_past(judged):
            yield alert(pipeline, judged.version, key, epoch, "raised", judged.match)
    version = history.versions[-1]
    if version.rule.absence:
        for match in version.rule.unfollowed(history.entries):
            epoch = result.first_epoch_reaching(match.time - 1)
            is_past_due = version.after is not None and match.time - 1 <= version.after
            if epoch is not None and not is_past_due and own_versions.of_epoch(sets, epoch).has(state):
                yield alert(pipeline, version, key, epoch, "raised", severe(version.rule, match))


def incomplete(histories, result, schema, sets):
    """Yields an error for each event at which a rule says that it is complete, and its condition does not hold as that of
    a rule that has always been there. Events that a later version precedes are left out: it may have forgotten what its
    predecessor needs. So are events that arrived after the rule was removed."""
    always = AlwaysThere(result, schema)
    for (state, key), history in histories.items():
        newest, end = -math.inf, own_versions.end(sets, state)
        for version, entry, judged in zip(history.versions, history.entries, history.judged):
            newest = max(newest, version.set_epoch)
            is_claimed = version.claims(entry.event.time) and newest == version.set_epoch
            if is_claimed and not version.rule.absence and not version.rule.condition.skips(entry):
                holds = always.holds(version, key, entry.event, end)
                if holds != judged.held:
                    yield (
                        f"rule {version.rule.id}, revision {version.revision}, key {key}: it is said to be complete at "
                        f"{entry.event.time}, but its condition {'holds' if holds else 'does not hold'} there if it has "
                        "always been there"
                    )


class AlwaysThere:
    """Rules over all events, as if each had always been there."""

    def __init__(self, result, schema):
        self.result = result
        self.schema = schema
        self.events = {}  # by what keys are of, and key
        self.entries = {}  # by version and key

    def holds(self, version, key, event, end):
        """Returns true if the condition of a version holds at an event, among those of epochs up to `end`."""
        known = (id(version), key)
        if known not in self.entries:
            events = (event for event in self.events_of(version.rule.by)[key] if event.epoch <= end)
            entries = (version.rule.entry(event) for event in events)
            self.entries[known] = [entry for entry in entries if entry is not None]
        entries = self.entries[known]
        index = bisect.bisect_left(entries, event.order, key=lambda entry: entry.event.order)
        return version.rule.condition.judge(entries, index) is not None

    def events_of(self, by):
        if by not in self.events:
            self.events[by] = defaultdict(list)
            for event in sorted(self.result.accepted, key=lambda event: event.order):
                self.events[by][self.schema.key(by, event)].append(event)
        return self.events[by]


def severe(rule, match):
    return type(match)(match.position, match.event_ids, match.time, match.details, rule.severity_of(None))


class Named:
    """What the id of an alert depends on beside its rule."""

    def __init__(self, key, position):
        self.kind, self.key = key
        self.partition, self.offset = position


def alert(pipeline, version, key, epoch, status, match):
    rule = version.rule
    return {
        "alert_id": identity(pipeline, rule.id, Named(key, match.position), version.revision),
        "status": status,
        "rule": rule.id,
        "rule_version": version.revision,
        "severity": match.severity,
        "key_kind": key[0],
        "key": key[1],
        "event_ids": list(match.event_ids),
        "event_time": match.time,
        "epoch": epoch,
        "final": rule.final,
        "details": dict(match.details),
        "mode": rule.mode,
    }


def window_rows(result, given, schema):
    """Yields the rows of the windows that the watermark has closed."""
    for window in given:
        by_key = defaultdict(list)
        for event in result.accepted:
            key = schema.key(window.get("by", "user_id"), event)
            if key is not None:
                by_key[key].append(event)
        for (kind, key), events in by_key.items():
            events.sort(key=lambda event: event.order)
            for start, end, within in windows.windows(window, events):
                epoch = result.first_epoch_reaching(end - 1)
                if epoch is not None:
                    summary = windows.summary(within)
                    yield outputs.window_row(window["name"], kind, key, start, end, epoch, summary)


def event_row(event):
    """Returns the columns of an event that do not depend on the events before it."""
    texts = ("event_id", "currency", "merchant_id", "merchant_category", "ip_address", "session_id", "device_id")
    lat, lon = event.fields.get("location", (None, None))
    return {
        "partition": event.partition,
        "offset": event.offset,
        "epoch": event.epoch,
        **{name: event.fields.get(name) for name in texts},
        "event_id": event.event_id,
        "event_type": event.fields.get("event_type", "event"),
        "key_kind": event.kind,
        "key": event.key,
        "event_time": event.time,
        "amount": None if event.amount is None else decimal(event.amount),
        "lat": lat,
        "lon": lon,
    }


def tables(result, given, schema, changes):
    """Returns the rows of each table. `changes` are the changes of the rules: epochs and texts."""
    sets = own_versions.sets(given.get("rules", []), changes, Rule, result.errors)
    found = alerts(result, sets, schema, given["pipeline"])
    return {
        "events": [event_row(event) for event in result.accepted],
        "alert_changes": found,
        "alerts": list({row["alert_id"]: row for row in found}.values()),
        "windows": list(window_rows(result, given.get("windows", []), schema)),
        "dead_letters": [outputs.dead_letter_row(letter) for letter in result.dead_letters],
    }


def main():
    parser = argparse.ArgumentParser(prog="own_rules", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--config", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--records", type=Path, help="records as NDJSON, values in base64")
    source.add_argument("--files", type=Path, nargs="+", help="the files of a file source")
    parser.add_argument("--bindings", type=Path, required=True)
    parser.add_argument("--partitions", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    parsed = tomllib.loads(args.config.read_text(encoding="utf-8"), parse_float=Fraction)
    given, schema = in_milliseconds(parsed), Schema.of(parsed)
    settings = config.settings({**given, "windows": [], "patterns": {}, "partitions": args.partitions or 0})
    source = records.files(args.files) if args.files else records.recorded(args.records)
    bound = records.bindings(args.bindings)
    result = flow.with_bindings(source, bound, settings, decode=schema.decode)
    changes = [(epoch.epoch, epoch.rules) for epoch in bound if epoch.rules is not None]
    args.out.mkdir(parents=True, exist_ok=True)
    written = {"unbound": result.unbound}
    for table, rows in tables(result, given, schema, changes).items():
        written[table] = len(rows)
        with open(args.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(json.dumps(written))
    for error in result.errors:
        print(f"own_rules: {error}", file=sys.stderr)
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
