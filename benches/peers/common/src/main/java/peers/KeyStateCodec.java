package peers;

import java.io.DataInput;
import java.io.IOException;

/** The form of a state in checkpoints and changelogs: times are differences, so that one has about four bytes. */
public final class KeyStateCodec {
    private static final ThreadLocal<Encoder> ENCODER = ThreadLocal.withInitial(Encoder::new);

    private KeyStateCodec() {}

    /** Encodes a state. The result is overwritten by the thread's next one. */
    public static Encoder encode(KeyState state) {
        Encoder out = ENCODER.get();
        out.clear();
        write(state, out);
        return out;
    }

    private static void write(KeyState state, Encoder out) {
        out.writeUnsigned(flags(state));
        out.writeUnsigned(state.count);
        long previous = 0;
        for (int i = state.count - Math.min(state.count, KeyState.TIMES); i < state.count; i++) {
            long time = state.times[i % KeyState.TIMES];
            out.writeSigned(time - previous);
            previous = time;
        }
        out.writeUnsigned(state.merchantCount);
        for (int i = 0; i < state.merchantCount; i++) {
            out.writeText(state.merchants[i]);
            out.writeSigned(previous - state.merchantTimes[i]);
        }
        out.writeUnsigned(state.amounts);
        if (state.amounts > 0) {
            out.writeDouble(state.mean);
            out.writeDouble(state.squares);
        }
        if (state.isLocated) {
            out.writeSigned(previous - state.locatedTime);
            out.writeDouble(state.latitude);
            out.writeDouble(state.longitude);
        }
        if (state.window.isOpen()) {
            writeWindow(state.window, previous, out);
        }
    }

    public static KeyState read(DataInput in) throws IOException {
        KeyState state = new KeyState();
        int flags = (int) Binary.readUnsigned(in);
        state.velocityHeld = (flags & 1) != 0;
        state.burstHeld = (flags & 2) != 0;
        state.diversityHeld = (flags & 4) != 0;
        state.isLocated = (flags & 8) != 0;
        state.count = (int) Binary.readUnsigned(in);
        long previous = readTimes(state, in);
        state.merchantCount = (int) Binary.readUnsigned(in);
        for (int i = 0; i < state.merchantCount; i++) {
            state.merchants[i] = Binary.readText(in);
            state.merchantHashes[i] = state.merchants[i].hashCode();
            state.merchantTimes[i] = previous - Binary.readSigned(in);
        }
        state.amounts = Binary.readUnsigned(in);
        if (state.amounts > 0) {
            state.mean = in.readDouble();
            state.squares = in.readDouble();
        }
        if (state.isLocated) {
            state.locatedTime = previous - Binary.readSigned(in);
            state.latitude = in.readDouble();
            state.longitude = in.readDouble();
        }
        if ((flags & 16) != 0) {
            readWindow(state.window, previous, in);
        }
        return state;
    }

    private static int flags(KeyState state) {
        return (state.velocityHeld ? 1 : 0)
                | (state.burstHeld ? 2 : 0)
                | (state.diversityHeld ? 4 : 0)
                | (state.isLocated ? 8 : 0)
                | (state.window.isOpen() ? 16 : 0);
    }

    /** Reads the last times. Returns the newest. */
    private static long readTimes(KeyState state, DataInput in) throws IOException {
        int kept = Math.min(state.count, KeyState.TIMES);
        int room = state.times.length;
        while (room < kept) {
            room = Math.min(KeyState.TIMES, 2 * room);
        }
        state.times = new long[room];
        long previous = 0;
        for (int i = state.count - kept; i < state.count; i++) {
            previous += Binary.readSigned(in);
            state.times[i % KeyState.TIMES] = previous;
        }
        return previous;
    }

    private static void writeWindow(Window window, long previous, Encoder out) {
        out.writeSigned(previous - window.start);
        out.writeUnsigned(window.count);
        out.writeSigned(window.sum);
        out.writeLong(window.min);
        out.writeLong(window.max);
    }

    private static void readWindow(Window window, long previous, DataInput in) throws IOException {
        window.start = previous - Binary.readSigned(in);
        window.count = Binary.readUnsigned(in);
        window.sum = Binary.readSigned(in);
        window.min = in.readLong();
        window.max = in.readLong();
    }
}
