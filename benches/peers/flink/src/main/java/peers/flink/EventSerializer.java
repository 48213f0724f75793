package peers.flink;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import peers.Binary;
import peers.Event;

/** Events in the exchange by key, in a form that is shorter and faster than Flink's for POJOs. */
public final class EventSerializer extends ValueSerializer<Event> {
    @Override
    public Event createInstance() {
        return new Event();
    }

    /** Returns the event itself, which nobody changes. */
    @Override
    public Event copy(Event event) {
        return event;
    }

    @Override
    public void serialize(Event event, DataOutputView out) throws IOException {
        out.writeByte((event.hasAmount ? 1 : 0) | (event.hasLocation ? 2 : 0));
        out.writeLong(event.time);
        Binary.writeText(out, event.user);
        Binary.writeText(out, event.id);
        Binary.writeText(out, event.merchant);
        if (event.hasAmount) {
            out.writeLong(event.amount);
        }
        if (event.hasLocation) {
            out.writeDouble(event.latitude);
            out.writeDouble(event.longitude);
        }
    }

    @Override
    public Event deserialize(DataInputView in) throws IOException {
        Event event = new Event();
        int flags = in.readByte();
        event.time = in.readLong();
        event.user = Binary.readText(in);
        event.id = Binary.readText(in);
        event.merchant = Binary.readText(in);
        event.hasAmount = (flags & 1) != 0;
        if (event.hasAmount) {
            event.amount = in.readLong();
        }
        event.hasLocation = (flags & 2) != 0;
        if (event.hasLocation) {
            event.latitude = in.readDouble();
            event.longitude = in.readDouble();
        }
        return event;
    }

    @Override
    public TypeSerializerSnapshot<Event> snapshotConfiguration() {
        return new Snapshot();
    }

    /** The version of the form, of which there is one. */
    public static final class Snapshot extends SimpleTypeSerializerSnapshot<Event> {
        public Snapshot() {
            super(EventSerializer::new);
        }
    }
}
