package peers.load;

import java.io.BufferedReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import peers.EventParser;
import peers.Options;

/** Sends the lines of a file to a topic. */
final class Fill {
    private Fill() {}

    static void run(Options options) throws Exception {
        AtomicReference<Exception> failure = new AtomicReference<>();
        try (KafkaProducer<byte[], byte[]> producer = Clients.producer(options, 20);
                BufferedReader lines = Files.newBufferedReader(Path.of(options.text("file")))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                byte[] value = line.getBytes(StandardCharsets.UTF_8);
                byte[] key = EventParser.parse(value).user.getBytes(StandardCharsets.UTF_8);
                producer.send(new ProducerRecord<>(options.text("topic"), key, value), (metadata, error) -> {
                    if (error != null) {
                        failure.set(error);
                    }
                });
            }
        }
        if (failure.get() != null) {
            throw failure.get();
        }
    }
}
