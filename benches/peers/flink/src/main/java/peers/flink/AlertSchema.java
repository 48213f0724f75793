package peers.flink;

import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.api.java.tuple.Tuple2;

/** The key of an alert, or its value. It is a class with a name because the sink cannot read the types of a lambda. */
final class AlertSchema implements SerializationSchema<Tuple2<String, byte[]>> {
    private final boolean isKey;

    AlertSchema(boolean isKey) {
        this.isKey = isKey;
    }

    @Override
    public byte[] serialize(Tuple2<String, byte[]> alert) {
        return isKey ? alert.f0.getBytes(StandardCharsets.UTF_8) : alert.f1;
    }
}
