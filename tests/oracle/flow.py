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
    pushes = defaultdict(Push)  # by partition
    pushed = {}  # by (epoch, partition): what its binding says of them
    arrived = defaultdict(list)  # by epoch
    for record in records:
        bound = taken.epoch_of(record)
        if bound is None:
            flow.unbound += 1
            continue
        event = decoded(record, bound.epoch, flow, settings.strict_fields)
        if event is None:
            continue
        clocks = [clock for clock in (stamp(record), bound.wall_ms) if clock is not None]
        if clocks and event.time > min(clocks) + skew:
            refuse(event, "future", "event_time", flow)
            continue
        at = (bound.epoch, record.partition)
        greatest[at] = max(greatest[at], event.time)
        push = pushes[record.partition]
        raised = push.take(min([event.time, *clocks]), settings.max_jump)
        before, _ = pushed.get(at, (None, None))
        pushed[at] = (push.greatest if raised else before, push.candidate)
        arrived[bound.epoch].append(event)

    taken.check_ends()
    partitions = settings.partitions or max([0, *(partition + 1 for partition in taken.partitions)])
    watermark = Watermark(partitions, settings.max_out_of_orderness, settings.idle_advance)
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
        check_greatest(bound, greatest, pushed, flow)
        before = watermark.advance(bound, pushed)
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


# 2000-01-01: a timestamp before it is none.
FIRST_TIMESTAMP = 946_684_800_000


def stamp(record):
    """The record's own timestamp, if it is one."""
    return None if record.timestamp is None or record.timestamp < FIRST_TIMESTAMP else record.timestamp


class Push:
    """The greatest pushing time of a partition, and a jump that waits to be confirmed."""

    def __init__(self):
        self.greatest = None
        self.candidate = None

    def take(self, time, max_jump):
        """Takes in a pushing time; whether the greatest has grown."""
        before = self.greatest
        counts = [time]
        if max_jump is not None:
            if self.candidate is not None and time >= self.candidate - max_jump:
                self.raise_to(self.candidate)
            self.candidate = None
            if self.greatest is None or time > self.greatest + max_jump:
                self.candidate = time
                counts = []
        for each in counts:
            self.raise_to(each)
        return self.greatest != before

    def raise_to(self, time):
        self.greatest = time if self.greatest is None else max(self.greatest, time)


class Watermark:
    """Per partition: greatest pushing time − max_out_of_orderness − 1 ms; W is the least of those not idle, and the
    greatest if all are."""

    STEP = 1000

    def __init__(self, partitions, max_out_of_orderness, idle_advance=None):
        self.behind = max_out_of_orderness + 1
        self.idle_advance = idle_advance
        self.greatest = [BEGINNING] * partitions
        self.idle = [False] * partitions
        self.watermark = BEGINNING
        self.all_idle = None  # since when, and how far W was behind then

    def advance(self, bound, pushed):
        for binding in bound.bindings:
            # A partition that was added counts from its first binding on.
            added = max(0, binding.partition + 1 - len(self.greatest))
            self.greatest += [BEGINNING] * added
            self.idle += [False] * added
            self.idle[binding.partition] = binding.idle
            raised, _ = pushed.get((bound.epoch, binding.partition), (None, None))
            if raised is not None:
                self.greatest[binding.partition] = max(self.greatest[binding.partition], raised)
        busy = [time for time, idle in zip(self.greatest, self.idle) if not idle]
        if busy:
            self.watermark = max(self.watermark, min(busy) - self.behind)
            self.all_idle = None
        else:
            # Nobody holds it back.
            self.watermark = max(self.watermark, max(self.greatest, default=BEGINNING) - self.behind)
            if self.idle_advance is not None and bound.wall_ms is not None and self.watermark != BEGINNING:
                self.follow(bound.wall_ms)
        if bound.close:
            self.watermark = END
        return self.watermark

    def follow(self, wall):
        """All are idle: W keeps its lag to the wall once that has lasted, in steps."""
        if self.all_idle is None:
            self.all_idle = wall, wall - self.watermark
        since, lag = self.all_idle
        if wall - since >= self.idle_advance and wall - lag - self.watermark >= self.STEP:
            self.watermark = wall - lag


def check_greatest(bound, greatest, pushed, flow):
    for binding in bound.bindings:
        ours = greatest.get((bound.epoch, binding.partition))
        if binding.max_event_time != ours:
            flow.complaints.append(
                f"epoch {bound.epoch}, partition {binding.partition}: the greatest event time is {ours}, "
                f"but its binding says {binding.max_event_time}"
            )
        told = pushed.get((bound.epoch, binding.partition))
        if binding.pushed is not None and told is not None and binding.pushed != told:
            flow.complaints.append(
                f"epoch {bound.epoch}, partition {binding.partition}: pushing time and candidate are {told}, "
                f"but its binding says {binding.pushed}"
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
