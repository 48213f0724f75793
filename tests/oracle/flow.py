"""Admission: the epoch of each record, the accepted events, and the watermark of each epoch.

Turns records and bindings into accepted events, in the order of their arrival, dead letters, and a list of all errors
by which the bindings contradict the input.
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
    """A record that was not accepted, with the reason."""

    partition: int
    offset: int
    epoch: int
    reason: str
    field: str | None
    digest: bytes | None


@dataclass
class Flow:
    """The results of admission."""

    accepted: list = field(default_factory=list)
    dead_letters: list = field(default_factory=list)
    # Epochs in ascending order, and the watermark at the end of each.
    epochs: list = field(default_factory=list)
    watermarks: list = field(default_factory=list)
    # The number of records that belong to no epoch, and the errors in the bindings.
    unbound: int = 0
    errors: list = field(default_factory=list)

    def first_epoch_reaching(self, time):
        """Returns the first epoch whose watermark reaches `time`; none if there is none."""
        at = bisect_left(self.watermarks, time)
        return self.epochs[at] if at < len(self.epochs) else None

    def arrivals(self):
        """Yields each epoch that has accepted events, with its events in order."""
        batch = []
        for event in self.accepted:
            if batch and batch[0].epoch != event.epoch:
                yield batch[0].epoch, batch
                batch = []
            batch.append(event)
        if batch:
            yield batch[0].epoch, batch


def without_epochs(records, settings):
    """Admits all records in one epoch, in the order of event time: nothing is late or in the future."""
    flow = Flow(epochs=[0], watermarks=[END])
    arrived = []
    for record in records:
        event = decode_or_reject(record, 0, flow, settings.strict_fields)
        if event is not None:
            arrived.append(event)
    Deduplication(settings.dedup_horizon).admit(arrived, flow)
    return flow


def with_bindings(records, bound_epochs, settings, judge_future=True, decode=decode):
    """Admits each record in the epoch that the bindings assign to it. `decode` makes an event of a record's value."""
    flow = Flow()
    lookup = EpochLookup(bound_epochs, flow)
    skew = settings.max_future_skew if judge_future else END
    greatest = defaultdict(lambda: BEGINNING)  # by (epoch, partition)
    pushes = defaultdict(Push)  # by partition
    pushed = {}  # by (epoch, partition): pushing time and candidate
    arrived = defaultdict(list)  # by epoch
    for record in records:
        bound = lookup.epoch_of(record)
        if bound is None:
            flow.unbound += 1
            continue
        event = decode_or_reject(record, bound.epoch, flow, settings.strict_fields, decode)
        if event is None:
            continue
        clocks = [clock for clock in (valid_timestamp(record), bound.wall_ms) if clock is not None]
        if clocks and event.time > min(clocks) + skew:
            reject(event, "future", "event_time", flow)
            continue
        at = (bound.epoch, record.partition)
        greatest[at] = max(greatest[at], event.time)
        push = pushes[record.partition]
        raised = push.apply(min([event.time, *clocks]), settings.max_jump)
        before, _ = pushed.get(at, (None, None))
        pushed[at] = (push.greatest if raised else before, push.candidate)
        arrived[bound.epoch].append(event)

    lookup.check_ends()
    partitions = settings.partitions or max([0, *(partition + 1 for partition in lookup.partitions)])
    watermark = Watermark(partitions, settings.max_out_of_orderness, settings.idle_advance)
    deduplication = Deduplication(settings.dedup_horizon)
    before = BEGINNING
    for bound in bound_epochs:
        on_time = []
        for event in arrived.pop(bound.epoch, []):
            if event.time <= before:
                reject(event, "late", "event_time", flow)
            else:
                on_time.append(event)
        deduplication.admit(on_time, flow)
        check_greatest(bound, greatest, pushed, flow)
        before = watermark.advance(bound, pushed)
        check_watermark(bound, before, flow)
        flow.epochs.append(bound.epoch)
        flow.watermarks.append(before)
    return flow


def decode_or_reject(record, epoch, flow, strict, decode=decode):
    """Decodes a record; returns none if it becomes a dead letter."""
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


def reject(event, reason, name, flow):
    flow.dead_letters.append(
        DeadLetter(event.partition, event.offset, event.epoch, reason, name, event.digest)
    )


class EpochLookup:
    """The epochs of records: a record's epoch is the first whose end for the partition is beyond the record's offset."""

    def __init__(self, bound_epochs, flow):
        self.flow = flow
        self.ends = defaultdict(list)  # by partition
        self.bound = defaultdict(list)  # by partition, beside its ends
        self.last_records = {}  # (partition, offset) -> timestamp in the binding
        self.partitions = set()
        last = None
        for bound in bound_epochs:
            if last is not None and bound.epoch <= last:
                flow.errors.append(f"epoch {bound.epoch} does not come after epoch {last}")
            last = bound.epoch
            for binding in bound.bindings:
                self.add(bound, binding)

    def add(self, bound, binding):
        ends = self.ends[binding.partition]
        if ends and binding.end < ends[-1]:
            self.flow.errors.append(
                f"epoch {bound.epoch}, partition {binding.partition}: "
                f"the end decreases from {ends[-1]} to {binding.end}"
            )
        ends.append(binding.end)
        self.bound[binding.partition].append(bound)
        self.partitions.add(binding.partition)
        if binding.timestamp is not None:
            self.last_records[binding.partition, binding.end - 1] = binding.timestamp

    def epoch_of(self, record):
        self.partitions.add(record.partition)
        recorded = self.last_records.pop((record.partition, record.offset), None)
        if recorded is not None and record.timestamp is not None and recorded != record.timestamp:
            self.flow.errors.append(
                f"record {record.partition}:{record.offset} has the timestamp {record.timestamp}, "
                f"but its binding has {recorded}"
            )
        at = bisect_right(self.ends[record.partition], record.offset)
        bound = self.bound[record.partition]
        return bound[at] if at < len(bound) else None

    def check_ends(self):
        for partition, offset in sorted(self.last_records):
            self.flow.errors.append(f"a binding ends with {partition}:{offset}, which is missing")


# 2000-01-01: earlier timestamps count as absent.
FIRST_TIMESTAMP = 946_684_800_000


def valid_timestamp(record):
    """Returns the timestamp of a record, or none if it counts as absent."""
    return None if record.timestamp is None or record.timestamp < FIRST_TIMESTAMP else record.timestamp


class Push:
    """The greatest pushing time of a partition, and an unconfirmed jump."""

    def __init__(self):
        self.greatest = None
        self.candidate = None

    def apply(self, time, max_jump):
        """Applies a pushing time; returns true if the greatest has increased."""
        before = self.greatest
        confirmed = [time]
        if max_jump is not None:
            if self.candidate is not None and time >= self.candidate - max_jump:
                self.raise_to(self.candidate)
            self.candidate = None
            if self.greatest is None or time > self.greatest + max_jump:
                self.candidate = time
                confirmed = []
        for confirmed_time in confirmed:
            self.raise_to(confirmed_time)
        return self.greatest != before

    def raise_to(self, time):
        self.greatest = time if self.greatest is None else max(self.greatest, time)


class Watermark:
    """The watermark W. Each partition has its greatest pushing time − max_out_of_orderness − 1 ms; W is the least of the
    partitions that are not idle, or the greatest of all if all are idle."""

    STEP = 1000

    def __init__(self, partitions, max_out_of_orderness, idle_advance=None):
        self.behind = max_out_of_orderness + 1
        self.idle_advance = idle_advance
        self.greatest = [BEGINNING] * partitions
        self.idle = [False] * partitions
        self.watermark = BEGINNING
        self.all_idle = None  # since when all are idle, and the lag of W at that time

    def advance(self, bound, pushed):
        for binding in bound.bindings:
            # An added partition counts from its first binding on.
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
            # No partition holds the watermark back.
            self.watermark = max(self.watermark, max(self.greatest, default=BEGINNING) - self.behind)
            if self.idle_advance is not None and bound.wall_ms is not None and self.watermark != BEGINNING:
                self.follow(bound.wall_ms)
        if bound.close:
            self.watermark = END
        return self.watermark

    def follow(self, wall):
        """Advances W once all have been idle for `idle_advance`: it keeps its lag behind the wall clock, in steps."""
        if self.all_idle is None:
            self.all_idle = wall, wall - self.watermark
        since, lag = self.all_idle
        if wall - since >= self.idle_advance and wall - lag - self.watermark >= self.STEP:
            self.watermark = wall - lag


def check_greatest(bound, greatest, pushed, flow):
    for binding in bound.bindings:
        computed = greatest.get((bound.epoch, binding.partition))
        if binding.max_event_time != computed:
            flow.errors.append(
                f"epoch {bound.epoch}, partition {binding.partition}: the greatest event time is {computed}, "
                f"but its binding has {binding.max_event_time}"
            )
        derived = pushed.get((bound.epoch, binding.partition))
        if binding.pushed is not None and derived is not None and binding.pushed != derived:
            flow.errors.append(
                f"epoch {bound.epoch}, partition {binding.partition}: pushing time and candidate are {derived}, "
                f"but its binding has {binding.pushed}"
            )


def check_watermark(bound, watermark, flow):
    computed = None if watermark in (BEGINNING, END) else watermark
    if bound.watermark != computed:
        flow.errors.append(f"epoch {bound.epoch}: W is {computed}, but the engine had {bound.watermark}")


class Deduplication:
    """An event is a duplicate if an accepted event with its key and id is within the horizon of event time."""

    def __init__(self, horizon):
        self.horizon = horizon
        self.accepted = defaultdict(list)  # by key and id: times

    def admit(self, events, flow):
        """Admits the events of an epoch."""
        for event in sorted(events, key=lambda event: event.order):
            times = self.accepted[event.kind, event.key, event.event_id]
            if self.horizon > 0 and any(abs(event.time - time) <= self.horizon for time in times):
                reject(event, "duplicate", "event_id", flow)
            else:
                times.append(event.time)
                flow.accepted.append(event)
