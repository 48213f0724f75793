package peers;

import com.dslplatform.json.DslJson;
import com.dslplatform.json.JsonReader;
import com.dslplatform.json.NumberConverter;
import com.dslplatform.json.StringConverter;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;

/** Parses events from bytes with the pull parser of DSL-JSON, which is faster than Jackson's streaming parser here. */
public final class EventParser {
    private static final DslJson<Object> JSON =
            new DslJson<>(new DslJson.Settings<>().doublePrecision(JsonReader.DoublePrecision.DEFAULT));
    private static final ThreadLocal<JsonReader<Object>> READER = ThreadLocal.withInitial(() -> JSON.newReader(new byte[4096]));

    private EventParser() {}

    public static Event parse(byte[] bytes) {
        JsonReader<Object> reader = READER.get();
        reader.process(bytes, bytes.length);
        try {
            Event event = new Event();
            readObject(reader, reader.getNextToken(), event, EventParser::readField);
            if (event.id == null || event.user == null) {
                throw new IOException("event_id or user_id is missing");
            }
            return event;
        } catch (IOException error) {
            throw new UncheckedIOException(new String(bytes, StandardCharsets.UTF_8), error);
        }
    }

    /** Reads the value of a field whose name and first byte are read. Returns false if it is not a field of an event. */
    private static boolean readField(JsonReader<Object> reader, Event event) throws IOException {
        if (reader.wasLastName("event_id")) {
            event.id = reader.readString();
        } else if (reader.wasLastName("user_id")) {
            event.user = reader.readString();
        } else if (reader.wasLastName("event_time")) {
            event.time = NumberConverter.deserializeLong(reader);
        } else if (reader.wasLastName("amount")) {
            event.hasAmount = true;
            event.amount = Math.round(NumberConverter.deserializeDouble(reader) * 1e6);
        } else if (reader.wasLastName("merchant_id")) {
            event.merchant = StringConverter.deserialize(reader);
        } else if (reader.wasLastName("location")) {
            event.hasLocation = true;
            readObject(reader, reader.last(), event, EventParser::readCoordinate);
        } else {
            return false;
        }
        return true;
    }

    private static boolean readCoordinate(JsonReader<Object> reader, Event event) throws IOException {
        if (reader.wasLastName("lat")) {
            event.latitude = NumberConverter.deserializeDouble(reader);
        } else if (reader.wasLastName("lon")) {
            event.longitude = NumberConverter.deserializeDouble(reader);
        } else {
            return false;
        }
        return true;
    }

    private interface FieldReader {
        boolean read(JsonReader<Object> reader, Event event) throws IOException;
    }

    private static void readObject(JsonReader<Object> reader, byte first, Event event, FieldReader field) throws IOException {
        if (first != '{') {
            throw new IOException("expected an object");
        }
        byte token = reader.getNextToken();
        while (token != '}') {
            if (token == ',') {
                token = reader.getNextToken();
            }
            reader.fillNameWeakHash();
            reader.getNextToken();
            // Skipping a value reads the token after it; the readers of values do not.
            token = field.read(reader, event) ? reader.getNextToken() : reader.skip();
        }
    }
}
