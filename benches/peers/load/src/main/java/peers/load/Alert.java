package peers.load;

import com.dslplatform.json.DslJson;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.time.Instant;
import java.util.List;
import java.util.Map;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.common.header.Header;

/** An alert of any of the engines: all write the same names. */
record Alert(String id, String rule, String severity, String key, String event, long time) {
    private static final DslJson<Object> JSON = new DslJson<>(new DslJson.Settings<>().includeServiceLoader());

    /** Returns true if a record takes an alert of an earlier commit out of a table again, as Pathway does: the alert has passed. */
    static boolean isRemoval(ConsumerRecord<byte[], byte[]> record) {
        Header difference = record.headers().lastHeader("pathway_diff");
        return difference != null && difference.value()[0] == '-';
    }

    static Alert parse(byte[] bytes) {
        try {
            Map<?, ?> fields = JSON.deserialize(Map.class, bytes, bytes.length);
            List<?> events = (List<?>) fields.get("event_ids");
            Object time = fields.get("event_time");
            return new Alert(
                    (String) fields.get("alert_id"),
                    (String) fields.get("rule"),
                    (String) fields.get("severity"),
                    (String) fields.get("key"),
                    (String) events.get(events.size() - 1),
                    time instanceof Number number ? number.longValue() : Instant.parse((String) time).toEpochMilli());
        } catch (IOException error) {
            throw new UncheckedIOException(new String(bytes, StandardCharsets.UTF_8), error);
        }
    }

    /** Returns the parts that all engines and the oracle agree on. */
    String content() {
        return String.join("|", rule, severity, key, event);
    }
}
