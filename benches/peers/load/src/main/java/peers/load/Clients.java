package peers.load;

import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import peers.Options;

/** Producers and consumers of bytes. */
final class Clients {
    private Clients() {}

    static KafkaProducer<byte[], byte[]> producer(Options options, int lingerMs) {
        Map<String, Object> properties = Map.of(
                "bootstrap.servers", options.text("brokers"),
                "linger.ms", lingerMs,
                "batch.size", 131_072,
                "buffer.memory", 128 << 20,
                "acks", "all");
        return new KafkaProducer<>(properties, new ByteArraySerializer(), new ByteArraySerializer());
    }

    /** Returns a consumer of all partitions of a topic that sees only committed records. Its position is not set. */
    static KafkaConsumer<byte[], byte[]> consumer(Options options, String topic) {
        Map<String, Object> properties = Map.of(
                "bootstrap.servers", options.text("brokers"),
                "isolation.level", "read_committed",
                "max.poll.records", 5000);
        var consumer = new KafkaConsumer<>(properties, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        List<TopicPartition> partitions = consumer.partitionsFor(topic).stream()
                .map(info -> new TopicPartition(topic, info.partition()))
                .toList();
        consumer.assign(partitions);
        return consumer;
    }
}
