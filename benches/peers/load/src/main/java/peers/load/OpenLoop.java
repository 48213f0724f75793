package peers.load;

import java.lang.management.ManagementFactory;
import java.time.Duration;
import java.util.HashSet;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import peers.Options;

/**
 * Measures the time from when an event is due to when a consumer of committed records has its alert. Events are sent at a fixed
 * rate whatever the engine does, so that a stall counts for each event that it delays.
 */
final class OpenLoop {
    private static final int LONGEST_MS = 120_000;
    private static final int PATIENCE_MS = 15_000;

    private final Options options;
    private final Generator generator;
    private final int[] latencies = new int[LONGEST_MS + 1];
    private final Set<String> ids = new HashSet<>();
    private int measured;
    private int repeated;

    OpenLoop(Options options) {
        this.options = options;
        generator = new Generator(options);
    }

    void run() throws InterruptedException {
        try (KafkaConsumer<byte[], byte[]> consumer = Clients.consumer(options, options.text("alerts"))) {
            consumer.seekToEnd(consumer.assignment());
            consumer.assignment().forEach(consumer::position);
            Thread sender = new Thread(generator, "generator");
            sender.start();
            long lastAlert = System.currentTimeMillis();
            while (sender.isAlive() || (ids.size() < generator.alerts() && System.currentTimeMillis() < lastAlert + PATIENCE_MS)) {
                var records = consumer.poll(Duration.ofMillis(100));
                long now = System.currentTimeMillis();
                if (!records.isEmpty() || sender.isAlive()) {
                    lastAlert = now;
                }
                for (ConsumerRecord<byte[], byte[]> record : records) {
                    if (!Alert.isRemoval(record)) {
                        note(Alert.parse(record.value()), now);
                    }
                }
            }
            sender.join();
        }
        report();
    }

    private void note(Alert alert, long now) {
        if (!ids.add(alert.id())) {
            repeated++;
        } else if (alert.time() >= generator.measuredFrom()) {
            measured++;
            latencies[(int) Math.min(LONGEST_MS, now - alert.time())]++;
        }
    }

    private int quantile(double share) {
        long rank = Math.max(1, (long) Math.ceil(share * measured));
        long seen = 0;
        for (int latency = 0; latency <= LONGEST_MS; latency++) {
            seen += latencies[latency];
            if (seen >= rank) {
                return latency;
            }
        }
        return -1;
    }

    private void report() {
        var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
        System.out.printf(
                "{\"alerts\":%d,\"expected\":%d,\"repeated\":%d,\"measured\":%d,\"p50_ms\":%d,\"p90_ms\":%d,\"p99_ms\":%d,"
                        + "\"max_ms\":%d,\"generator_late_ms\":%d,\"loader_cpu_s\":%.1f}%n",
                ids.size(),
                generator.alerts(),
                repeated,
                measured,
                quantile(0.5),
                quantile(0.9),
                quantile(0.99),
                quantile(1),
                generator.latestMs(),
                system.getProcessCpuTime() / 1e9);
    }
}
