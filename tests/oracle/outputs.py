"""The tables and topics of a run, as rows.

Columns are those of the tables. Times are whole milliseconds since 1970, decimals are texts, documents (`attributes`)
are canonical JSON texts. Without epochs a row lacks the columns that depend on the order of arrival.
"""

import alerts
import enrich
import windows

# The columns that identify a row.
KEYS = {
    "events": ("partition", "offset"),
    "alerts": ("alert_id",),
    "alert_changes": ("alert_id", "epoch"),
    "windows": ("window_name", "key_kind", "key", "start"),
    "dead_letters": ("partition", "offset"),
}


def tables(flow, settings, epochs, emission=None):
    """Yields the rows of each table, sorted by key; `epochs` is false if the input has no epochs."""
    # Without epochs, there is one epoch at the end of time, and every result is final.
    changes = alerts.changes(flow, settings, emission if epochs else "final")
    rows = {
        "events": (event_row(event, enrichment) for event, enrichment in enrich.enriched(flow)),
        "alerts": map(alert_row, {change.alert_id: change for change in changes}.values()),
        "windows": window_rows(flow, settings),
        "dead_letters": map(dead_letter_row, flow.dead_letters),
    }
    if epochs:
        rows["alert_changes"] = map(alert_row, changes)
    for table, of_table in rows.items():
        forget = () if epochs else ARRIVAL
        of_table = [{column: row[column] for column in row if column not in forget} for row in of_table]
        key = KEYS[table]
        yield table, sorted(of_table, key=lambda row: [row[column] for column in key])


# The columns that depend on the order of arrival.
ARRIVAL = frozenset(
    ("epoch", "final", "key_events", "key_amount_mean", "since_previous_ms", "km_from_previous")
)


def decimal(micros):
    """Formats millionths as a decimal text without trailing zeros."""
    if micros is None:
        return None
    whole, fraction = divmod(abs(micros), 10**6)
    text = f"{whole}.{fraction:06}".rstrip("0").rstrip(".")
    return "-" + text if micros < 0 else text


def event_row(event, enrichment):
    return {
        "partition": event.partition,
        "offset": event.offset,
        "epoch": event.epoch,
        "event_id": event.event_id,
        "event_type": event.event_type,
        "key_kind": event.kind,
        "key": event.key,
        "event_time": event.time,
        "amount": decimal(event.amount),
        "currency": event.currency,
        "merchant_id": event.merchant_id,
        "merchant_category": event.merchant_category,
        "ip_address": event.ip_address,
        "session_id": event.session_id,
        "device_id": event.device_id,
        "lat": event.lat,
        "lon": event.lon,
        "attributes": event.attributes,
        "amount_band": enrich.amount_band(event.amount),
        "key_events": enrichment.key_events,
        "key_amount_mean": enrichment.key_amount_mean,
        "since_previous_ms": enrichment.since_previous_ms,
        "km_from_previous": enrichment.km_from_previous,
    }


def alert_row(change):
    event, match = change.event, change.match
    return {
        "alert_id": change.alert_id,
        "status": change.status,
        "rule": change.rule,
        "rule_version": alerts.RULE_VERSION,
        "severity": match.severity,
        "key_kind": event.kind,
        "key": event.key,
        "event_ids": [*match.events_before, event.event_id],
        "event_time": event.time,
        "epoch": change.epoch,
        "final": change.final,
        "details": dict(match.details),
    }


def window_rows(flow, settings):
    """Yields the rows of the windows that the watermark has closed."""
    by_key = {}
    for event in flow.accepted:
        by_key.setdefault((event.kind, event.key), []).append(event)
    for events in by_key.values():
        events.sort(key=alerts.ORDER)
    for window in settings.windows:
        kinds = windows.KINDS[window["by"]]
        for (kind, key), events in by_key.items():
            if kind not in kinds:
                continue
            for start, end, within in windows.windows(window, events):
                epoch = flow.first_epoch_reaching(end - 1)
                if epoch is not None:
                    yield window_row(window["name"], kind, key, start, end, epoch, windows.summary(within))


def window_row(name, kind, key, start, end, epoch, summary):
    return {
        "window_name": name,
        "key_kind": kind,
        "key": key,
        "start": start,
        "end": end,
        "count": summary.count,
        "amount_count": summary.amount_count,
        "amount_sum": decimal(summary.amount_sum),
        "mean": summary.mean,
        "min": decimal(summary.min),
        "max": decimal(summary.max),
        "stddev": summary.stddev,
        "distinct_merchants": summary.distinct_merchants,
        "final": True,
        "epoch": epoch,
    }


def dead_letter_row(letter):
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "epoch": letter.epoch,
        "reason": letter.reason,
        "field": letter.field,
        "value_sha256": None if letter.digest is None else letter.digest.hex(),
    }
