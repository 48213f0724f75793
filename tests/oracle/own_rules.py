"""The oracle of rules of one's own over events of one's own: `[fields]`, `[keys]` and `[[rules]]`.

    python3 tests/oracle/own_rules.py --config run.toml --files a.ndjson b.ndjson --bindings bindings.ndjson --out expected
    python3 tests/oracle/own_rules.py --config run.toml --records records.ndjson --bindings bindings.ndjson --out expected

Like `__main__.py`, whose admission it uses, it computes the tables and topics of a run directly from the definitions: for
each rule and key it judges each admitted event by the list of those before it. CEL is not evaluated: each expression of
a configuration stands beside a function in own_expressions.py.
"""

import argparse
import bisect
import json
import math
import sys
import tomllib
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import config
import flow
import outputs
import records
import windows
from alerts import RULE_VERSION, identity
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
    """A rule over one key's events so far: those that it considers, in order, and what was found at each."""

    def __init__(self, rule):
        self.rule = rule
        self.entries = []
        self.judged = []  # by entry: whether the condition holds, the end of the suppression, and the result

    def add(self, entries):
        """Adds entries and judges each from the first new one on. Returns the results by position."""
        before = len(self.entries)
        for entry in entries:
            at = bisect.bisect(self.entries, entry.event.order, key=lambda known: known.event.order)
            self.entries.insert(at, entry)
            before = min(before, at)
        gone = {match.position: match for _, _, match in self.judged[before:] if match is not None}
        del self.judged[before:]
        if self.rule.absence:
            return gone, {}
        for index in range(before, len(self.entries)):
            self.judged.append(self.judge(index))
        return gone, {match.position: match for _, _, match in self.judged[before:] if match is not None}

    def judge(self, index):
        rule, event = self.rule, self.entries[index].event
        match = rule.condition.judge(self.entries, index)
        held, until, _ = self.judged[index - 1] if index > 0 else (False, -math.inf, None)
        rises = match is not None and not (held and rule.condition.on_edge)
        # The first event after a suppression needs no edge.
        ends = index > 0 and self.entries[index - 1].event.time < until <= event.time
        if match is None or event.time < until or not (rises or ends):
            return match is not None, until, None
        if rule.suppress is not None:
            until = event.time + rule.suppress
        return True, until, event_match(rule, event, match)


def event_match(rule, event, match):
    return type(match)(
        match.position, match.event_ids, match.time, match.details, rule.severity(event, match)
    )


def alerts(result, rules, schema, pipeline):
    """Returns every change of every alert, as rows by epoch."""
    rows = []
    for rule in rules:
        histories = defaultdict(lambda: History(rule))
        for epoch, batch in result.arrivals():
            by_key = defaultdict(list)
            for event in batch:
                key = schema.key(rule.by, event)
                entry = None if key is None else rule.entry(event)
                if entry is not None:
                    by_key[key].append(entry)
            for key, entries in by_key.items():
                before, now = histories[key].add(entries)
                if not rule.final:
                    rows += changes(pipeline, rule, key, epoch, before, now)
        if rule.final:
            for key, history in histories.items():
                rows += finals(result, pipeline, rule, key, history)
    return sorted(rows, key=lambda row: (row["epoch"], row["alert_id"]))


def changes(pipeline, rule, key, epoch, before, now):
    for position, match in now.items():
        if before.get(position) != match:
            yield alert(pipeline, rule, key, epoch, "raised", match)
    for position in before.keys() - now.keys():
        yield alert(pipeline, rule, key, epoch, "revoked", before[position])


def finals(result, pipeline, rule, key, history):
    """Yields the results that the watermark has reached."""
    if rule.absence:
        found = rule.unfollowed(history.entries)
        due = [(match.time - 1, severe(rule, match)) for match in found]
    else:
        due = [(match.time, match) for _, _, match in history.judged if match is not None]
    for time, match in due:
        epoch = result.first_epoch_reaching(time)
        if epoch is not None:
            yield alert(pipeline, rule, key, epoch, "raised", match)


def severe(rule, match):
    return type(match)(match.position, match.event_ids, match.time, match.details, rule.severity_of(None))


class Named:
    """What the id of an alert depends on beside its rule."""

    def __init__(self, key, position):
        self.kind, self.key = key
        self.partition, self.offset = position


def alert(pipeline, rule, key, epoch, status, match):
    return {
        "alert_id": identity(pipeline, rule.id, Named(key, match.position)),
        "status": status,
        "rule": rule.id,
        "rule_version": RULE_VERSION,
        "severity": match.severity,
        "key_kind": key[0],
        "key": key[1],
        "event_ids": list(match.event_ids),
        "event_time": match.time,
        "epoch": epoch,
        "final": rule.final,
        "details": dict(match.details),
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


def tables(result, given, schema):
    """Returns the rows of each table."""
    rules = [Rule(rule) for rule in given.get("rules", [])]
    found = alerts(result, rules, schema, given["pipeline"])
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
    result = flow.with_bindings(source, records.bindings(args.bindings), settings, decode=schema.decode)
    args.out.mkdir(parents=True, exist_ok=True)
    written = {"unbound": result.unbound}
    for table, rows in tables(result, given, schema).items():
        written[table] = len(rows)
        with open(args.out / f"{table}.ndjson", "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(json.dumps(written))
    for error in result.errors:
        print(f"own_rules: {error}", file=sys.stderr)
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
