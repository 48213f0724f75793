package peers;

/** A tumbling window of a minute of one user: its events, and sum, least and greatest of their amounts, in millionths. */
public final class Window {
    public static final long SIZE_MS = 60_000;
    static final long NONE = Long.MIN_VALUE;

    public long start = NONE;
    public long count;
    long sum;
    long min;
    long max;

    public boolean isOpen() {
        return start != NONE;
    }

    public boolean contains(long time) {
        return isOpen() && startOf(time) == start;
    }

    public long end() {
        return start + SIZE_MS;
    }

    public void open(long time) {
        start = startOf(time);
        count = 0;
        sum = 0;
        min = Long.MAX_VALUE;
        max = Long.MIN_VALUE;
    }

    public void add(Event event) {
        count++;
        if (event.hasAmount) {
            sum += event.amount;
            min = Math.min(min, event.amount);
            max = Math.max(max, event.amount);
        }
    }

    /** Counts the window as a result, which no topic receives. Afterwards it is not open. */
    public void close() {
        Meter.countWindow(count);
        start = NONE;
    }

    void set(Window other) {
        start = other.start;
        count = other.count;
        sum = other.sum;
        min = other.min;
        max = other.max;
    }

    public static long startOf(long time) {
        return Math.floorDiv(time, SIZE_MS) * SIZE_MS;
    }
}
