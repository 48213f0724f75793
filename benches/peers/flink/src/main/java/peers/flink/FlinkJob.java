package peers.flink;

import java.nio.file.Path;
import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.sink.TransactionNamingStrategy;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.datastream.DataStreamUtils;
import org.apache.flink.streaming.api.datastream.SingleOutputStreamOperator;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import peers.Event;
import peers.Meter;
import peers.Options;
import peers.Window;

/**
 * The job in Flink, in one process. The options are brokers, topic, alerts (a topic), parallelism, checkpoint-ms, buffer-ms,
 * state (a directory), windows (fused: in the function of the patterns; operator: Flink's own), broker-id, and events (of a run
 * that ends; 0 for a run that is stopped).
 */
public final class FlinkJob {
    static final TypeInformation<Tuple2<String, byte[]>> ALERT =
            Types.TUPLE(Types.STRING, TypeInformation.of(byte[].class));
    static final ValueType<Event> EVENT = new ValueType<>(Event.class, EventSerializer::new);

    private FlinkJob() {}

    public static void main(String[] arguments) throws Exception {
        Options options = new Options(arguments, 0);
        boolean isFused = options.text("windows").equals("fused");
        int events = options.number("events");
        if (events > 0) {
            Meter.expect(events, options.number("broker-id"));
        }
        var environment = StreamExecutionEnvironment.createLocalEnvironment(options.number("parallelism"), configuration(options));
        SingleOutputStreamOperator<Event> matched = environment
                .fromSource(source(options, events > 0), inOrder(), "events", EVENT)
                .keyBy(event -> event.user, Types.STRING)
                .process(new PatternFunction(isFused))
                .returns(EVENT);
        matched.getSideOutput(PatternFunction.ALERTS).sinkTo(sink(options));
        if (!isFused) {
            // The key is the same, so the windows need no second exchange and are chained to the patterns.
            DataStreamUtils.reinterpretAsKeyedStream(matched, event -> event.user, Types.STRING)
                    .window(TumblingEventTimeWindows.of(Duration.ofMillis(Window.SIZE_MS)))
                    .trigger(new EndTrigger())
                    .aggregate(new MinuteAggregate(), new WindowCounter())
                    .sinkTo(new DiscardingSink<>());
        }
        environment.execute("peers");
        Meter.report();
    }

    private static WatermarkStrategy<Event> inOrder() {
        return WatermarkStrategy.<Event>forMonotonousTimestamps().withTimestampAssigner((event, timestamp) -> event.time);
    }

    private static Configuration configuration(Options options) {
        Configuration configuration = new Configuration();
        configuration.setString("pipeline.object-reuse", "true");
        configuration.setString("pipeline.auto-watermark-interval", "200ms");
        configuration.setString("state.backend.type", "hashmap");
        // State is on the heap, so managed memory would be unused.
        configuration.setString("taskmanager.memory.managed.size", "0b");
        configuration.setString("taskmanager.memory.network.min", "128mb");
        configuration.setString("taskmanager.memory.network.max", "128mb");
        configuration.setString("execution.buffer-timeout.interval", options.text("buffer-ms") + "ms");
        configuration.setString("restart-strategy.type", "none");
        configuration.setString("execution.checkpointing.interval", options.text("checkpoint-ms") + "ms");
        configuration.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
        configuration.setString("execution.checkpointing.dir", Path.of(options.text("state")).toUri().toString());
        // Shorter queues before the patterns, so that a checkpoint's barriers pass them sooner.
        configuration.setString("taskmanager.network.memory.buffer-debloat.enabled", "true");
        configuration.setString("taskmanager.network.memory.buffer-debloat.period", "100ms");
        return configuration;
    }

    private static KafkaSource<Event> source(Options options, boolean isBounded) {
        var builder = KafkaSource.<Event>builder()
                .setBootstrapServers(options.text("brokers"))
                .setTopics(options.text("topic"))
                .setGroupId(options.text("alerts"))
                .setStartingOffsets(OffsetsInitializer.earliest())
                .setDeserializer(new EventSchema())
                .setProperty("fetch.min.bytes", "1")
                .setProperty("max.poll.records", "2000")
                .setProperty("isolation.level", "read_committed");
        return (isBounded ? builder.setBounded(OffsetsInitializer.latest()) : builder).build();
    }

    private static KafkaSink<Tuple2<String, byte[]>> sink(Options options) {
        String topic = options.text("alerts");
        return KafkaSink.<Tuple2<String, byte[]>>builder()
                .setBootstrapServers(options.text("brokers"))
                .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE)
                .setTransactionalIdPrefix(topic)
                // Reuses transactional ids, where the default would have a new one for each checkpoint.
                .setTransactionNamingStrategy(TransactionNamingStrategy.POOLING)
                .setProperty("transaction.timeout.ms", "600000")
                .setProperty("linger.ms", "5")
                .setProperty("batch.size", "131072")
                .setRecordSerializer(KafkaRecordSerializationSchema.<Tuple2<String, byte[]>>builder()
                        .setTopic(topic)
                        .setKeySerializationSchema(new AlertSchema(true))
                        .setValueSerializationSchema(new AlertSchema(false))
                        .build())
                .build();
    }
}
