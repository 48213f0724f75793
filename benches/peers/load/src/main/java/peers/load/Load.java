package peers.load;

import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.NewTopic;
import peers.Options;

/**
 * What the comparison does with the broker:
 *
 * <pre>
 * create --brokers B --topic T --partitions N       creates a topic without retention
 * delete --brokers B --prefix P                     deletes topics
 * fill   --brokers B --topic T --file F             sends the lines of a file, with their users as keys
 * count  --brokers B --topic T                      prints the committed alerts by rule
 * open   --brokers B --topic T --alerts A --rate R --warm-up-s S --seconds S --users N
 *                                                   sends events at a rate, and prints the latency of their alerts
 * </pre>
 */
public final class Load {
    private Load() {}

    public static void main(String[] arguments) throws Exception {
        Options options = new Options(arguments, 1);
        switch (arguments[0]) {
            case "create" -> create(options);
            case "delete" -> delete(options);
            case "fill" -> Fill.run(options);
            case "count" -> Count.run(options);
            case "open" -> new OpenLoop(options).run();
            default -> throw new IllegalArgumentException(arguments[0] + ": expected create, delete, fill, count or open");
        }
    }

    private static void create(Options options) throws Exception {
        // Event times are in the past, and Flink gives alerts the time of their event: retention would delete them.
        NewTopic topic = new NewTopic(options.text("topic"), options.number("partitions"), (short) 1)
                .configs(Map.of("retention.ms", "-1", "retention.bytes", "-1"));
        try (Admin admin = admin(options)) {
            admin.createTopics(List.of(topic)).all().get();
        }
    }

    private static void delete(Options options) throws Exception {
        try (Admin admin = admin(options)) {
            List<String> topics = admin.listTopics().names().get().stream()
                    .filter(name -> name.startsWith(options.text("prefix")))
                    .toList();
            admin.deleteTopics(topics).all().get();
        }
    }

    private static Admin admin(Options options) {
        return Admin.create(Map.of("bootstrap.servers", options.text("brokers")));
    }
}
