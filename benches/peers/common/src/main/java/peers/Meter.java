package peers;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.LongAdder;

/**
 * Counts events as they leave the patterns; each thread has one. A process is one run, so the counters of all are static. The
 * first third of the events is the warm-up, in which the virtual machine compiles; the rest is the steady state.
 */
public final class Meter {
    private static final int BATCH = 250;
    // Each thread may hold up to a batch that is not counted yet.
    private static final long MARGIN = 16 * BATCH;

    private static final LongAdder WINDOWS = new LongAdder();
    private static final LongAdder WINDOW_EVENTS = new LongAdder();
    private static final AtomicLong DONE = new AtomicLong();
    private static final CountDownLatch END = new CountDownLatch(1);
    private static long total = Long.MAX_VALUE;
    private static int broker;
    private static volatile Sample steadyBegin;
    private static volatile Sample steadyEnd;

    private int pending;

    /** Sets the number of events of the run, and the process id of the broker. To be called before the job starts. */
    public static void expect(long events, int brokerId) {
        total = events;
        broker = brokerId;
    }

    /** Waits until all events are processed. */
    public static void await() throws InterruptedException {
        END.await();
    }

    /** Counts a window that is closed, with its number of events. */
    public static void countWindow(long events) {
        WINDOWS.increment();
        WINDOW_EVENTS.add(events);
    }

    public void count() {
        if (++pending == BATCH) {
            flush();
        }
    }

    public void flush() {
        long after = DONE.addAndGet(pending);
        long before = after - pending;
        pending = 0;
        if (before < total / 3 && after >= total / 3) {
            steadyBegin = Sample.take(after);
        }
        if (before < total - MARGIN && after >= total - MARGIN) {
            steadyEnd = Sample.take(after);
        }
        if (before < total && after >= total) {
            END.countDown();
        }
    }

    /** Prints the figures of the run as JSON. */
    public static void report() {
        long events = steadyEnd.events - steadyBegin.events;
        double seconds = (steadyEnd.nanos - steadyBegin.nanos) / 1e9;
        System.out.printf(
                "{\"events\":%d,\"steady_events_per_s\":%.0f,\"steady_cpu_us\":%.3f,"
                        + "\"steady_broker_cpu_us\":%.3f,\"windows\":%d,\"window_events\":%d}%n",
                DONE.get(),
                events / seconds,
                (steadyEnd.cpuNanos - steadyBegin.cpuNanos) / 1e3 / events,
                (steadyEnd.brokerMillis - steadyBegin.brokerMillis) * 1e3 / events,
                WINDOWS.sum(),
                WINDOW_EVENTS.sum());
        System.out.flush();
    }

    /** The time and CPU times at a number of events. */
    private record Sample(long events, long nanos, long cpuNanos, long brokerMillis) {
        static Sample take(long events) {
            var system = (com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
            return new Sample(events, System.nanoTime(), system.getProcessCpuTime(), cpuMillis(broker));
        }

        /** Returns user and system time of a process: the 12th and 13th field after its name, in hundredths of a second. */
        private static long cpuMillis(int process) {
            try {
                String text = Files.readString(Path.of("/proc/" + process + "/stat"));
                String[] fields = text.substring(text.lastIndexOf(')') + 2).split(" ");
                return (Long.parseLong(fields[11]) + Long.parseLong(fields[12])) * 10;
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    }
}
