"""The settings of a run that affect results: JSON in milliseconds, or the engine's own TOML.

    {"pipeline": "fraud", "partitions": 6,
     "time": {"max_out_of_orderness_ms": 5000, "max_future_skew_ms": 300000}, "dedup_horizon_ms": 60000,
     "source": {"strict_fields": false},
     "windows": [{"name": "user_1m", "kind": "tumbling", "by": "user_id", "size_ms": 60000}],
     "patterns": {"velocity_spike": {"more_than": 100, "within_ms": 3600000}}}

Absent settings have their defaults; without `patterns` all five patterns run, otherwise only the named ones.
`partitions`, the initial number, is required only if partitions are added, or have neither a record nor a binding.
Keys that do not affect results are ignored.
"""

import json
import re
import tomllib
from dataclasses import dataclass
from fractions import Fraction

SEVERITIES = ("low", "medium", "high", "critical")
EMISSIONS = ("immediate", "final")
COUNTING = ("velocity_spike", "rapid_fire_burst", "merchant_diversity")

PATTERNS = {
    "velocity_spike": {"more_than": 100, "within_ms": 3_600_000, "severity": "high"},
    "rapid_fire_burst": {"at_least": 10, "within_ms": 10_000, "severity": "high"},
    "merchant_diversity": {"at_least": 8, "within_ms": 3_600_000, "severity": "medium"},
    "amount_anomaly": {
        "sigmas": Fraction(3), "high_sigmas": Fraction(5), "at_least": 30, "min_sigma": Fraction("0.01"),
        "min_relative_sigma": Fraction("0.01"), "per_currency": False, "severity": "medium",
    },
    "impossible_travel": {"more_than_km": Fraction(50), "more_than_kmh": Fraction(900), "severity": "critical"},
}  # fmt: skip

WINDOWS = {
    "tumbling": {"name", "kind", "by", "size_ms"},
    "sliding": {"name", "kind", "by", "size_ms", "slide_ms"},
    "session": {"name", "kind", "by", "gap_ms"},
}


@dataclass
class Settings:
    """A configuration with its defaults filled in; durations in milliseconds."""

    pipeline: str
    partitions: int
    max_out_of_orderness: int
    max_future_skew: int
    # Only files have a bound on jumps.
    max_jump: int | None
    # The time for which all partitions must be idle before the watermark follows the wall clock; none: it never does.
    idle_advance: int | None
    dedup_horizon: int
    strict_fields: bool
    windows: list
    patterns: dict


def load(path):
    """Loads the settings from a file: TOML if its suffix is .toml, otherwise JSON."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return settings(in_milliseconds(tomllib.loads(text, parse_float=Fraction)))
    return settings(json.loads(text, parse_float=Fraction))


def settings(config):
    time = config.get("time", {})
    source = config.get("source", {})
    patterns = config.get("patterns", dict.fromkeys(PATTERNS, {}))
    return Settings(
        pipeline=config["pipeline"],
        partitions=config.get("partitions", 0),
        max_out_of_orderness=time.get("max_out_of_orderness_ms", 5000),
        max_future_skew=time.get("max_future_skew_ms", 300_000),
        max_jump=source.get("max_jump_ms", 3_600_000) if source.get("kind") == "file" else None,
        idle_advance=time.get("idle_advance_ms"),
        dedup_horizon=config.get("dedup_horizon_ms", config.get("limits", {}).get("dedup_horizon_ms", 60_000)),
        strict_fields=config.get("source", {}).get("strict_fields", False),
        windows=[window(given) for given in config.get("windows", [])],
        patterns={rule: pattern(rule, given) for rule, given in patterns.items()},
    )


def window(given):
    needed = WINDOWS[given["kind"]]
    filled = {"by": "user_id", **given}
    if not needed <= filled.keys() <= needed | {"emit", "revise_every_ms"}:
        raise ValueError(f"window {given}: expected {sorted(needed)}")
    if filled["by"] not in ("user_id", "device_id", "key"):
        raise ValueError(f"window {given}: by is user_id, device_id or key")
    return filled


def pattern(rule, given):
    defaults = {"emit": "immediate", **PATTERNS[rule]}
    filled = {**defaults, **given}
    # "More than 100" is the same as "at least 101".
    if "more_than" in given or "at_least" not in filled and "more_than" in filled:
        filled["at_least"] = filled["more_than"] + 1
    filled.pop("more_than", None)
    known = defaults.keys() | ({"more_than", "at_least"} if rule in COUNTING else set())
    if given.keys() - known or filled["emit"] not in EMISSIONS or filled["severity"] not in SEVERITIES:
        raise ValueError(f"pattern {rule}: cannot use {given}")
    return filled


UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def in_milliseconds(value):
    """Converts each `key = "5s"` to `key_ms = 5000`, at any depth."""
    if isinstance(value, list):
        return [in_milliseconds(item) for item in value]
    if not isinstance(value, dict):
        return value
    turned = {}
    for key, item in value.items():
        duration = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", item) if isinstance(item, str) else None
        if duration and key not in ("name", "pipeline"):
            turned[key + "_ms"] = int(duration[1]) * UNITS[duration[2]]
        else:
            turned[key] = in_milliseconds(item)
    return turned
