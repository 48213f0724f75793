package peers.flink;

import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.flink.util.OutputTag;
import peers.Event;
import peers.KeyState;
import peers.Meter;
import peers.Rule;
import peers.Window;

/**
 * The five patterns, and the windows if they are fused. The state is one object for each key. The heap backend hands out the
 * object itself, or a copy while a snapshot still needs the old one, so it needs no update for each event.
 */
final class PatternFunction extends KeyedProcessFunction<String, Event, Event> {
    static final OutputTag<Tuple2<String, byte[]>> ALERTS = new OutputTag<>("alerts", FlinkJob.ALERT);

    private final boolean isFused;
    private transient ValueState<KeyState> states;
    private transient Meter meter;

    PatternFunction(boolean isFused) {
        this.isFused = isFused;
    }

    @Override
    public void open(OpenContext context) {
        states = getRuntimeContext().getState(new ValueStateDescriptor<>("patterns", new KeyStateSerializer()));
        meter = new Meter();
    }

    @Override
    public void processElement(Event event, Context context, Collector<Event> out) throws Exception {
        KeyState state = states.value();
        if (state == null) {
            state = new KeyState();
            states.update(state);
        }
        int raised = state.process(event);
        if (raised != 0) {
            Rule.send(raised, event, alert -> context.output(ALERTS, Tuple2.of(event.user, alert)));
        }
        if (isFused) {
            addToWindow(state.window, event, context);
        } else {
            out.collect(event);
        }
        meter.count();
    }

    private void addToWindow(Window window, Event event, Context context) {
        if (!window.contains(event.time)) {
            if (window.isOpen()) {
                window.close();
            }
            window.open(event.time);
            context.timerService().registerEventTimeTimer(window.end() - 1);
        }
        window.add(event);
    }

    @Override
    public void onTimer(long time, OnTimerContext context, Collector<Event> out) throws Exception {
        Window window = states.value().window;
        // The next event of the key may have closed it already.
        if (window.isOpen() && window.end() - 1 == time) {
            window.close();
        }
    }

    @Override
    public void close() {
        if (meter != null) {
            meter.flush();
        }
    }
}
