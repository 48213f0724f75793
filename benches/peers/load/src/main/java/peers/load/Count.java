package peers.load;

import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.stream.Collectors;
import java.util.zip.CRC32;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import peers.Options;

/** Prints as JSON the committed alerts by rule, the number of repeated ids, and a checksum of all in any order. */
final class Count {
    private Count() {}

    static void run(Options options) {
        Map<String, Integer> byRule = new TreeMap<>();
        Set<String> ids = new HashSet<>();
        int repeated = 0;
        long checksum = 0;
        try (KafkaConsumer<byte[], byte[]> consumer = Clients.consumer(options, options.text("topic"))) {
            consumer.seekToBeginning(consumer.assignment());
            // With read_committed, the end is that of the committed records.
            Map<TopicPartition, Long> ends = consumer.endOffsets(consumer.assignment());
            while (ends.entrySet().stream().anyMatch(end -> consumer.position(end.getKey()) < end.getValue())) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(500))) {
                    if (Alert.isRemoval(record)) {
                        continue;
                    }
                    Alert alert = Alert.parse(record.value());
                    byRule.merge(alert.rule(), 1, Integer::sum);
                    repeated += ids.add(alert.id()) ? 0 : 1;
                    CRC32 crc = new CRC32();
                    crc.update(alert.content().getBytes(StandardCharsets.UTF_8));
                    checksum += crc.getValue();
                }
            }
        }
        String counts = byRule.entrySet().stream()
                .map(count -> "\"" + count.getKey() + "\":" + count.getValue())
                .collect(Collectors.joining(","));
        System.out.printf("{\"by_rule\":{%s},\"repeated\":%d,\"checksum\":%d}%n", counts, repeated, checksum);
    }
}
