package peers.flink;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import peers.Encoder;
import peers.KeyState;
import peers.KeyStateCodec;

/** The states of keys in checkpoints. */
public final class KeyStateSerializer extends ValueSerializer<KeyState> {
    @Override
    public KeyState createInstance() {
        return new KeyState();
    }

    @Override
    public KeyState copy(KeyState state) {
        return state.copy();
    }

    @Override
    public void serialize(KeyState state, DataOutputView out) throws IOException {
        Encoder encoded = KeyStateCodec.encode(state);
        out.write(encoded.array(), 0, encoded.length());
    }

    @Override
    public KeyState deserialize(DataInputView in) throws IOException {
        return KeyStateCodec.read(in);
    }

    @Override
    public TypeSerializerSnapshot<KeyState> snapshotConfiguration() {
        return new Snapshot();
    }

    /** The version of the form, of which there is one. */
    public static final class Snapshot extends SimpleTypeSerializerSnapshot<KeyState> {
        public Snapshot() {
            super(KeyStateSerializer::new);
        }
    }
}
