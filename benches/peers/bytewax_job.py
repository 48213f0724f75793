"""The job in Bytewax, with the patterns and the windows in one stateful step.

    PEERS_BROKERS=… PEERS_TOPIC=… PEERS_ALERTS=… PEERS_EVENTS=3000000 python -m bytewax.run bytewax_job.py -r DIR -s 10 -b 0
"""

import atexit
import copy
import json
import os
import time

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow

from python_patterns import KeyState, alert


class Patterns(op.StatefulBatchLogic):
    """Emits alerts, and windows as tuples. A window is closed by the next event of its user, or by the end."""

    def __init__(self, state):
        self.state = state or KeyState()

    def on_batch(self, values):
        state, results = self.state, []
        for event in values:
            raised = state.process(event)
            for rule, severity in raised:
                text = alert(rule, severity, event["user_id"], event["event_id"], event["event_time"])
                results.append(KafkaSinkMessage(event["user_id"].encode(), text.encode()))
            closed = state.add_to_window(event)
            if closed:
                results.append(closed)
        return results, self.RETAIN

    def on_eof(self):
        closed = self.state.close_window()
        return [closed] if closed else [], self.RETAIN

    def snapshot(self):
        return copy.deepcopy(self.state)


begin = time.monotonic()
atexit.register(lambda: print(json.dumps({"run_s": time.monotonic() - begin}), flush=True))
brokers = os.environ["PEERS_BROKERS"].split(",")
flow = Dataflow("peers")
source = KafkaSource(brokers, [os.environ["PEERS_TOPIC"]], tail=os.environ["PEERS_EVENTS"] == "0", batch_size=2000)
messages = op.input("events", flow, source)
events = op.map("parse", messages, lambda message: orjson.loads(message.value))
keyed = op.key_on("by_user", events, lambda event: event["user_id"])
results = op.key_rm("results", op.stateful_batch("patterns", keyed, Patterns))
# The windows go nowhere else.
alerts = op.filter("alerts", results, lambda result: isinstance(result, KafkaSinkMessage))
op.output("out", alerts, KafkaSink(brokers, os.environ["PEERS_ALERTS"]))
