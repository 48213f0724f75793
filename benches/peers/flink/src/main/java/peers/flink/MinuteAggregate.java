package peers.flink;

import org.apache.flink.api.common.functions.AggregateFunction;
import peers.Event;

/** Number of events, and sum, least and greatest of their amounts. */
public final class MinuteAggregate implements AggregateFunction<Event, MinuteAggregate.Values, MinuteAggregate.Values> {
    /** A POJO with public fields, for which Flink makes a serialiser. */
    public static final class Values {
        public long count;
        public long sum;
        public long min = Long.MAX_VALUE;
        public long max = Long.MIN_VALUE;
    }

    @Override
    public Values createAccumulator() {
        return new Values();
    }

    @Override
    public Values add(Event event, Values values) {
        values.count++;
        if (event.hasAmount) {
            values.sum += event.amount;
            values.min = Math.min(values.min, event.amount);
            values.max = Math.max(values.max, event.amount);
        }
        return values;
    }

    @Override
    public Values getResult(Values values) {
        return values;
    }

    @Override
    public Values merge(Values one, Values other) {
        throw new UnsupportedOperationException("tumbling windows do not merge");
    }
}
