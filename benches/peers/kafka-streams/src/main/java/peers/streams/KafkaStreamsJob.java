package peers.streams;

import java.time.Duration;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.Stores;
import peers.Meter;
import peers.Options;

/**
 * The job in Kafka Streams. The options are brokers, topic, alerts (a topic), threads, commit-ms, state (a directory), broker-id,
 * and events (of a run that ends; 0 for a run that is stopped).
 */
public final class KafkaStreamsJob {
    private static final int ALL_KEYS = 10_000_000;

    private KafkaStreamsJob() {}

    public static void main(String[] arguments) throws Exception {
        Options options = new Options(arguments, 0);
        int events = options.number("events");
        if (events > 0) {
            Meter.expect(events, options.number("broker-id"));
        }
        KafkaStreams streams = new KafkaStreams(topology(options), properties(options, events > 0));
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        Meter.await();
        // A stream has no end of its own: closing commits what is left.
        streams.close(Duration.ofSeconds(60));
        Meter.report();
    }

    private static Topology topology(Options options) {
        Serde<byte[]> bytes = Serdes.ByteArray();
        // Of the stores in memory, the one with a limit keeps no order of keys, and is faster. It never drops a key.
        var states = Stores.keyValueStoreBuilder(
                        Stores.lruMap(PatternProcessor.STORE, ALL_KEYS), Serdes.String(), new KeyStateSerde())
                .withLoggingEnabled(Map.of());
        StreamsBuilder builder = new StreamsBuilder();
        builder.addStateStore(states);
        builder.stream(options.text("topic"), Consumed.with(bytes, bytes))
                .process(PatternProcessor::new, PatternProcessor.STORE)
                .to(options.text("alerts"), Produced.with(Serdes.String(), bytes));
        return builder.build();
    }

    private static Properties properties(Options options, boolean isBounded) {
        Properties properties = new Properties();
        properties.put(StreamsConfig.APPLICATION_ID_CONFIG, options.text("alerts"));
        properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, options.text("brokers"));
        properties.put(StreamsConfig.STATE_DIR_CONFIG, options.text("state"));
        properties.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, options.number("threads"));
        properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        properties.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, options.number("commit-ms"));
        properties.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 10_000);
        properties.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        properties.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5_000);
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 262_144);
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), isBounded ? 20 : 5);
        properties.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 64 << 20);
        return properties;
    }
}
