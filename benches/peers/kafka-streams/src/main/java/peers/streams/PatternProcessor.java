package peers.streams;

import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.processor.PunctuationType;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueIterator;
import org.apache.kafka.streams.state.KeyValueStore;
import peers.Event;
import peers.EventParser;
import peers.KeyState;
import peers.Meter;
import peers.Rule;
import peers.Window;

/**
 * The five patterns and the windows. The states of a task's keys are also objects here, filled from the restored store, so that no
 * read deserialises. Each event writes the state of its key to the store, and so to the changelog. A window is closed by the key's
 * next event, or by the sweep once the task's event time has passed its end.
 */
final class PatternProcessor implements Processor<byte[], byte[], String, byte[]> {
    static final String STORE = "patterns";

    private final Map<String, KeyState> states = new HashMap<>();
    private final Meter meter = new Meter();
    private KeyValueStore<String, KeyState> store;
    private ProcessorContext<String, byte[]> context;
    private long greatestTime;
    private long sweptTo;

    @Override
    public void init(ProcessorContext<String, byte[]> context) {
        this.context = context;
        store = context.getStateStore(STORE);
        try (KeyValueIterator<String, KeyState> stored = store.all()) {
            while (stored.hasNext()) {
                KeyValue<String, KeyState> next = stored.next();
                states.put(next.key, next.value);
            }
        }
        context.schedule(Duration.ofMillis(500), PunctuationType.WALL_CLOCK_TIME, now -> meter.flush());
        context.schedule(Duration.ofSeconds(1), PunctuationType.WALL_CLOCK_TIME, now -> sweep());
    }

    @Override
    public void process(Record<byte[], byte[]> record) {
        Event event = EventParser.parse(record.value());
        KeyState state = states.computeIfAbsent(event.user, user -> new KeyState());
        int raised = state.process(event);
        if (raised != 0) {
            Rule.send(raised, event, alert -> context.forward(new Record<>(event.user, alert, record.timestamp())));
        }
        addToWindow(state.window, event);
        greatestTime = Math.max(greatestTime, event.time);
        store.put(event.user, state);
        meter.count();
    }

    private static void addToWindow(Window window, Event event) {
        if (!window.contains(event.time)) {
            if (window.isOpen()) {
                window.close();
            }
            window.open(event.time);
        }
        window.add(event);
    }

    private void sweep() {
        long current = Window.startOf(greatestTime);
        if (current == sweptTo) {
            return;
        }
        sweptTo = current;
        states.forEach((user, state) -> {
            if (state.window.isOpen() && state.window.start < current) {
                state.window.close();
                store.put(user, state);
            }
        });
    }

    /** Counts also the windows that are open at the end of a bounded run, as the other engines close them. */
    @Override
    public void close() {
        meter.flush();
        for (KeyState state : states.values()) {
            if (state.window.isOpen()) {
                state.window.close();
            }
        }
    }
}
