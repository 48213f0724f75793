package peers.streams;

import java.io.ByteArrayInputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Arrays;
import org.apache.kafka.common.serialization.Deserializer;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serializer;
import peers.Encoder;
import peers.KeyState;
import peers.KeyStateCodec;

/** The states of keys in the store and its changelog. */
final class KeyStateSerde implements Serde<KeyState> {
    @Override
    public Serializer<KeyState> serializer() {
        return (topic, state) -> {
            if (state == null) {
                return null;
            }
            Encoder encoded = KeyStateCodec.encode(state);
            return Arrays.copyOf(encoded.array(), encoded.length());
        };
    }

    @Override
    public Deserializer<KeyState> deserializer() {
        return (topic, bytes) -> {
            try {
                return bytes == null ? null : KeyStateCodec.read(new DataInputStream(new ByteArrayInputStream(bytes)));
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        };
    }
}
