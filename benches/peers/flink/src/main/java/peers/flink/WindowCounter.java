package peers.flink;

import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;
import peers.Meter;

/** Counts the results of Flink's window operator; no topic receives them. */
final class WindowCounter
        extends ProcessWindowFunction<MinuteAggregate.Values, MinuteAggregate.Values, String, TimeWindow> {
    @Override
    public void process(
            String user, Context context, Iterable<MinuteAggregate.Values> results, Collector<MinuteAggregate.Values> out) {
        MinuteAggregate.Values values = results.iterator().next();
        Meter.countWindow(values.count);
        out.collect(values);
    }
}
