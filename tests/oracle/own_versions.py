"""Rules that change while a run goes on: which set of rules judges an event, and what follows what.

An event is judged by the newest set of rules that an earlier epoch than its own was bound to. A rule of the next set
follows the one with its id. It goes on with what that one remembers if it considers the same events and differs in
bounds only; an absence only if nothing that decides its results has changed. Otherwise it begins without history.

A rule may wait: it is in no set. When it enters with its past, it judges all earlier events as well, as if it had always
been there, and says what it finds at those that the watermark has not passed.

The engine writes each set as a text, with a number for the state of each rule, its revision, and since when its alerts
are complete. All but the last is decided here again, and must agree.
"""

import json
import tomllib
from dataclasses import dataclass, field
from fractions import Fraction

from config import in_milliseconds

# The settings that do not decide which events match.
LABELS = frozenset(("id", "severity", "emit", "mode", "description", "backfill"))
# The settings of each condition that do not decide what it remembers of an event.
BOUNDS = {
    "match": (), "absence": (),
    "count": ("at_least", "more_than", "within_ms"),
    "sum": ("at_least", "more_than", "within_ms"),
    "distinct": ("at_least", "more_than", "within_ms"),
    "average": ("at_least", "more_than", "at_least_events", "within_ms"),
    "share": ("at_least", "more_than", "at_least_events", "within_ms"),
    "outlier": ("sigmas", "high_sigmas", "at_least", "min_sigma", "min_relative_sigma"),
    "travel": ("more_than_km", "more_than_kmh"),
    "sequence": ("within_ms",),
}  # fmt: skip


@dataclass
class Version:
    """A rule of one set."""

    given: dict
    rule: object
    # Rules with the same state follow each other with what they remember.
    state: object
    revision: int = 1
    # The text of the engine: "always", {"from": time} or {"since": time}.
    complete: object = "always"
    # The epoch after which its set is in force.
    set_epoch: float = float("-inf")
    # The time up to which all is past when it enters as if it had always been there; None if it does not enter so.
    after: object = None

    def __post_init__(self):
        self.definition = definition(self.given)

    def claims(self, time):
        """Returns true if the engine says that the rule is complete at this time, and has not always been there."""
        if self.complete == "always":
            return self.set_epoch != float("-inf")
        return time > self.complete.get("from", float("inf"))


@dataclass
class RuleSet:
    """The rules that are in force together, for events of epochs after `epoch`."""

    epoch: float
    versions: list = field(default_factory=list)
    # The settings of the rules that wait.
    waiting: list = field(default_factory=list)

    def has(self, state):
        return any(version.state == state for version in self.versions)


def condition(given):
    (name,) = given.keys() & BOUNDS.keys()
    return name


def definition(given):
    """Returns all that decides which events match."""
    name = condition(given)
    inner = given[name]
    if isinstance(inner, dict):
        inner = {key: value for key, value in inner.items() if key != "high_sigmas"}
    return {**{key: value for key, value in given.items() if key not in LABELS}, name: inner}


def shape(given):
    """Returns what decides which events are considered, and what is remembered of them."""
    name, decides = condition(given), definition(given)
    decides.pop("suppress_ms", None)
    if isinstance(decides[name], dict):
        decides[name] = {key: value for key, value in decides[name].items() if key not in BOUNDS[name]}
    return decides


def is_absence(given):
    name = condition(given)
    return name == "absence" or name == "sequence" and any("not" in step for step in given[name]["steps"])


def labels(given):
    """Returns what an alert that is expected says of its rule."""
    return given.get("severity", "medium"), given.get("mode", "live")


def keeps_state(given, before):
    if is_absence(given) or is_absence(before):
        return definition(given) == definition(before) and labels(given) == labels(before)
    return condition(given) == condition(before) and shape(given) == shape(before)


def sets(first, changes, make, errors):
    """Returns all sets, of which `first` are the rules of the first one. `changes` are pairs of an epoch and the text of
    the engine; `make` makes a rule of its settings. What the texts say otherwise is appended to `errors`."""
    made = [RuleSet(float("-inf"), [Version(given, make(given), (0, given["id"])) for given in first])]
    numbers, number = {}, 1
    for epoch, text in changes:
        before = {version.given["id"]: version for version in made[-1].versions}
        read = json.loads(text)
        made.append(RuleSet(epoch))
        entry = read.get("entry") or {"rules": []}
        made[-1].waiting = [given_of(written) for written in read.get("waiting", [])]
        for written in read["rules"]:
            version = follow(given_of(written), before, len(made), make)
            version.complete, version.set_epoch = written["complete"], epoch
            if written["state"] in entry["rules"]:
                version.after = entry["after_ms"]
            made[-1].versions.append(version)
            check(version, written, epoch, numbers, errors)
        # A set with the same rules, which the configuration now has as well, has the same number.
        number += settings(made[-1]) != settings(made[-2])
        if read["version"] != number:
            errors.append(f"epoch {epoch}: the set has the number {read['version']}, expected {number}")
    return made


def given_of(written):
    return in_milliseconds(tomllib.loads(f"rule = {written['toml']}", parse_float=Fraction))["rule"]


def settings(rules):
    given = [version.given for version in rules.versions]
    return [sorted(some, key=lambda given: given["id"]) for some in (given, rules.waiting)]


def follow(given, before, number, make):
    predecessor = before.get(given["id"])
    version = Version(given, make(given), (number, given["id"]))
    if predecessor is not None:
        version.revision = predecessor.revision + (version.definition != predecessor.definition)
        if keeps_state(given, predecessor.given):
            version.state = predecessor.state
    return version


def check(version, written, epoch, numbers, errors):
    """Checks what the engine says of a rule: `numbers` are its numbers of states, of which each stands for one."""
    label = f"epoch {epoch}, rule {version.given['id']}"
    if written["revision"] != version.revision:
        errors.append(f"{label}: the revision is {version.revision}, but the engine has {written['revision']}")
    number = numbers.setdefault(version.state, written["state"])
    if number != written["state"]:
        errors.append(f"{label}: the engine begins without state, but it must go on with that of the rule before")
    elif [state for state, other in numbers.items() if other == number] != [version.state]:
        errors.append(f"{label}: the engine goes on with the state of another rule")


def of_epoch(all_sets, epoch):
    """Returns the set that judges the events of an epoch."""
    return next(rules for rules in reversed(all_sets) if rules.epoch < epoch)


def end(all_sets, state):
    """Returns the last epoch whose events a rule with this state judges."""
    at = max(at for at, rules in enumerate(all_sets) if rules.has(state))
    return all_sets[at + 1].epoch if at + 1 < len(all_sets) else float("inf")
