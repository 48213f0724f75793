package peers.load;

import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.locks.LockSupport;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import peers.Event;
import peers.KeyState;
import peers.Options;

/** Sends event n at start + n / rate, which is also its event time, and counts the alerts that are due. */
final class Generator implements Runnable {
    private static final int START_IN_MS = 1500;

    private final Options options;
    private final int rate;
    private final int users;
    private final long total;
    private final long start = System.currentTimeMillis() + START_IN_MS;
    private final long measuredFrom;
    private final Random random = new Random(5);
    private final Map<String, KeyState> states = new HashMap<>();
    private volatile long alerts;
    private volatile long latestMs;

    Generator(Options options) {
        this.options = options;
        rate = options.number("rate");
        users = options.number("users");
        int warmUp = options.number("warm-up-s");
        total = (long) rate * (warmUp + options.number("seconds"));
        measuredFrom = start + warmUp * 1000L;
    }

    long measuredFrom() {
        return measuredFrom;
    }

    /** Returns the number of alerts of the events so far. */
    long alerts() {
        return alerts;
    }

    /** Returns the greatest time by which an event was sent late, after the warm-up. */
    long latestMs() {
        return latestMs;
    }

    @Override
    public void run() {
        try (KafkaProducer<byte[], byte[]> producer = Clients.producer(options, 1)) {
            long sent = 0;
            while (sent < total) {
                long due = Math.min(total, (System.currentTimeMillis() - start) * rate / 1000);
                if (due <= sent) {
                    LockSupport.parkNanos(500_000);
                }
                for (; sent < due; sent++) {
                    send(producer, sent);
                }
            }
        }
    }

    private void send(KafkaProducer<byte[], byte[]> producer, long number) {
        Event event = next(number);
        alerts += Integer.bitCount(states.computeIfAbsent(event.user, user -> new KeyState()).process(event));
        byte[] key = event.user.getBytes(StandardCharsets.UTF_8);
        producer.send(new ProducerRecord<>(options.text("topic"), null, event.time, key, json(event)));
        if (event.time >= measuredFrom) {
            latestMs = Math.max(latestMs, System.currentTimeMillis() - event.time);
        }
    }

    private Event next(long number) {
        int user = random.nextInt(users);
        Event event = new Event();
        event.id = "e" + number;
        event.user = "u" + user;
        event.time = start + number * 1000 / rate;
        event.hasAmount = true;
        event.amount = (100 + random.nextInt(5000)) * (random.nextInt(200) == 0 ? 100_000L : 10_000L);
        event.merchant = "m" + random.nextInt(1000);
        event.hasLocation = true;
        event.latitude = user * 7919L % 80_000 / 1000.0 + (random.nextInt(100) == 0 ? 5 : 0);
        event.longitude = user * 104_729L % 170_000 / 1000.0;
        return event;
    }

    private static byte[] json(Event event) {
        long cents = event.amount / 10_000;
        String text = "{\"event_id\":\"" + event.id + "\",\"event_type\":\"transaction\",\"user_id\":\"" + event.user
                + "\",\"event_time\":" + event.time
                + ",\"amount\":" + cents / 100 + (cents % 100 < 10 ? ".0" : ".") + cents % 100
                + ",\"merchant_id\":\"" + event.merchant
                + "\",\"location\":{\"lat\":" + event.latitude + ",\"lon\":" + event.longitude + "}}";
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
