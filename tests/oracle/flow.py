"""Admission: which record belongs to which epoch, which event takes part, and where the watermark stands.

Records and bindings come in; events that were accepted, in the order of their arrival, and dead letters come out,
with everything in which the bindings contradict the input.
"""

import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

from decode import Rejected, decode

BEGINNING = -math.inf
END = math.inf


@dataclass(slots=True)
class DeadLetter:
    """A record that takes no part, and why."""

    partition: int
    offset: int
    epoch: int
    reason: str
    field: str | None
    digest: bytes | None


@dataclass
class Flow:
    """What became of the input."""

    accepted: list = field(default_factory=list)
    dead_letters: list = field(default_factory=list)
    # Epochs in ascending order, and the watermark at the end of each.
    epochs: list = field(default_factory=list)
    watermarks: list = field(default_factory=list)
    # Records that no epoch took, and what is wrong with the bindings.
    unbound: int = 0
    complaints: list = field(default_factory=list)

    def settled(self, time):
        """The first epoch whose watermark reaches `time`; none if none does."""
        at = bisect_left(self.watermarks, time)
        return self.epochs[at] if at < len(self.epochs) else None

    def arrivals(self):
        """Each epoch that accepted anything, with its events in order."""
        batch = []
        for event in self.accepted:
            if batch and batch[0].epoch != event.epoch:
                yield batch[0].epoch, batch
                batch = []
            batch.append(event)
        if batch:
            yield batch[0].epoch, batch


def without_epochs(records, settings):
    """Everything in one epoch, in the order of event time: nothing is late or in the future."""
    flow = Flow(epochs=[0], watermarks=[END])
    arrived = []
    for record in records:
        event = decoded(record, 0, flow, settings.strict_fields)
        if event is not None:
            arrived.append(event)
    Deduplication(settings.dedup_horizon).admit(arrived, flow)
    return flow


def with_bindings(records, bound_epochs, settings, judge_future=True):
    """Each record in the epoch that the bindings give it."""
    flow = Flow()
    taken = Taken(bound_epochs, flow)
    skew = settings.max_future_skew if judge_future else END
    greatest = defaultdict(lambda: BEGINNING)  # by (epoch, partition)
    arrived = defaultdict(list)  # by epoch
    for record in records:
        bound = taken.epoch_of(record)
        if bound is None:
            flow.unbound += 1
            continue
        event = decoded(record, bound.epoch, flow, settings.strict_fields)
        if event is None:
            continue
        clocks = [clock for clock in (record.timestamp, bound.wall_ms) if clock is not None]
        if clocks and event.time > min(clocks) + skew:
            refuse(event, "future", "event_time", flow)
            continue
        at = (bound.epoch, record.partition)
        greatest[at] = max(greatest[at], event.time)
        arrived[bound.epoch].append(event)

    taken.check_ends()
    partitions = max([settings.partitions, *(partition + 1 for partition in taken.partitions)])
    watermark = Watermark(partitions, settings.max_out_of_orderness)
    deduplication = Deduplication(settings.dedup_horizon)
    before = BEGINNING
    for bound in bound_epochs:
        on_time = []
        for event in arrived.pop(bound.epoch, []):
            if event.time <= before:
                refuse(event, "late", "event_time", flow)
            else:
                on_time.append(event)
        deduplication.admit(on_time, flow)
        check_greatest(bound, greatest, flow)
        before = watermark.advance(bound, greatest)
        check_watermark(bound, before, flow)
        flow.epochs.append(bound.epoch)
        flow.watermarks.append(before)
    return flow


def decoded(record, epoch, flow, strict):
    """The record's event; none if it goes to the dead letters."""
    try:
        event = decode(record.value, strict)
    except Rejected as rejected:
        flow.dead_letters.append(
            DeadLetter(
                record.partition, record.offset, epoch, rejected.reason, rejected.field, record.digest
            )
        )
        return None
    event.partition, event.offset, event.timestamp = record.partition, record.offset, record.timestamp
    event.digest, event.epoch = record.digest, epoch
    return event


def refuse(event, reason, name, flow):
    flow.dead_letters.append(
        DeadLetter(event.partition, event.offset, event.epoch, reason, name, event.digest)
    )


class Taken:
    """Which epoch took which record: the first one whose end for the record's partition lies beyond its offset."""

    def __init__(self, bound_epochs, flow):
        self.flow = flow
        self.ends = defaultdict(list)  # by partition
        self.bound = defaultdict(list)  # by partition, beside its ends
        self.last_records = {}  # (partition, offset) -> timestamp that a binding gives it
        self.partitions = set()
        last = None
        for bound in bound_epochs:
            if last is not None and bound.epoch <= last:
                flow.complaints.append(f"epoch {bound.epoch} comes after epoch {last}")
            last = bound.epoch
            for binding in bound.bindings:
                self.add(bound, binding)

    def add(self, bound, binding):
        ends = self.ends[binding.partition]
        if ends and binding.end < ends[-1]:
            self.flow.complaints.append(
                f"epoch {bound.epoch}, partition {binding.partition}: "
                f"the end goes back from {ends[-1]} to {binding.end}"
            )
        ends.append(binding.end)
        self.bound[binding.partition].append(bound)
        self.partitions.add(binding.partition)
        if binding.timestamp is not None:
            self.last_records[binding.partition, binding.end - 1] = binding.timestamp

    def epoch_of(self, record):
        self.partitions.add(record.partition)
        named = self.last_records.pop((record.partition, record.offset), None)
        if named is not None and record.timestamp is not None and named != record.timestamp:
            self.flow.complaints.append(
                f"record {record.partition}:{record.offset} has the timestamp {record.timestamp}, "
                f"but its binding says {named}"
            )
        at = bisect_right(self.ends[record.partition], record.offset)
        bound = self.bound[record.partition]
        return bound[at] if at < len(bound) else None

    def check_ends(self):
        for partition, offset in sorted(self.last_records):
            self.flow.complaints.append(f"a binding ends with {partition}:{offset}, which is not there")


class Watermark:
    """Per partition: greatest event time − max_out_of_orderness − 1 ms; W is the least of those not idle."""

    def __init__(self, partitions, max_out_of_orderness):
        self.behind = max_out_of_orderness + 1
        self.greatest = [BEGINNING] * partitions
        self.idle = [False] * partitions
        self.watermark = BEGINNING

    def advance(self, bound, greatest):
        for partition in range(len(self.greatest)):
            self.greatest[partition] = max(
                self.greatest[partition], greatest.get((bound.epoch, partition), BEGINNING)
            )
        for binding in bound.bindings:
            self.idle[binding.partition] = binding.idle
        busy = [time for time, idle in zip(self.greatest, self.idle) if not idle]
        if busy:
            self.watermark = max(self.watermark, min(busy) - self.behind)
        if bound.close:
            self.watermark = END
        return self.watermark


def check_greatest(bound, greatest, flow):
    for binding in bound.bindings:
        ours = greatest.get((bound.epoch, binding.partition))
        if binding.max_event_time != ours:
            flow.complaints.append(
                f"epoch {bound.epoch}, partition {binding.partition}: the greatest event time is {ours}, "
                f"but its binding says {binding.max_event_time}"
            )


def check_watermark(bound, watermark, flow):
    ours = None if watermark in (BEGINNING, END) else watermark
    if bound.watermark != ours:
        flow.complaints.append(f"epoch {bound.epoch}: W is {ours}, but the engine had {bound.watermark}")


class Deduplication:
    """An event is a duplicate if one of its key and id, accepted before, lies within the horizon of event time."""

    def __init__(self, horizon):
        self.horizon = horizon
        self.accepted = defaultdict(list)  # by key and id: times

    def admit(self, events, flow):
        """Takes in the events of an epoch."""
        for event in sorted(events, key=lambda event: event.order):
            times = self.accepted[event.kind, event.key, event.event_id]
            if self.horizon > 0 and any(abs(event.time - time) <= self.horizon for time in times):
                refuse(event, "duplicate", "event_id", flow)
            else:
                times.append(event.time)
                flow.accepted.append(event)
