package peers;

import java.util.Arrays;

/**
 * The five patterns of one user, and a tumbling window of a minute. The state is bounded by the thresholds: the last 101 times
 * answer both counts, the eight merchants that were seen last answer the diversity.
 */
public final class KeyState {
    static final long HOUR_MS = 3_600_000;
    static final long BURST_MS = 10_000;
    static final int TIMES = 101;
    static final int BURST_TIMES = 10;
    static final int MERCHANTS = 8;
    static final int MIN_AMOUNTS = 30;
    static final double MICRO = 1e6;

    long[] times = new long[8];
    int count;
    boolean velocityHeld;
    boolean burstHeld;
    boolean diversityHeld;

    String[] merchants = new String[MERCHANTS];
    // Hash codes first: most comparisons then touch no string.
    int[] merchantHashes = new int[MERCHANTS];
    long[] merchantTimes = new long[MERCHANTS];
    int merchantCount;

    long amounts;
    double mean;
    double squares;

    boolean isLocated;
    long locatedTime;
    double latitude;
    double longitude;

    /** The open window, for the jobs that compute windows here and not by an operator of the engine. */
    public final Window window = new Window();

    /** Processes an event, in the order of event time. Returns the rules that it raises, as bits. */
    public int process(Event event) {
        int raised = countEvent(event.time);
        if (event.merchant != null) {
            raised |= countMerchant(event);
        }
        if (event.hasAmount) {
            raised |= judgeAmount(event.amount);
        }
        if (event.hasLocation) {
            raised |= judgeTravel(event);
        }
        return raised;
    }

    private int countEvent(long time) {
        int last = count++;
        if (last == times.length && last < TIMES) {
            times = Arrays.copyOf(times, Math.min(TIMES, 2 * last));
        }
        times[last % TIMES] = time;
        boolean velocity = isWithin(last - (TIMES - 1), time - HOUR_MS);
        boolean burst = isWithin(last - (BURST_TIMES - 1), time - BURST_MS);
        int raised = (velocity && !velocityHeld ? Rule.VELOCITY.bit : 0) | (burst && !burstHeld ? Rule.BURST.bit : 0);
        velocityHeld = velocity;
        burstHeld = burst;
        return raised;
    }

    private boolean isWithin(int index, long after) {
        return index >= 0 && times[index % TIMES] > after;
    }

    private int countMerchant(Event event) {
        noteMerchant(event.merchant, event.time);
        boolean held = merchantCount == MERCHANTS;
        for (int i = 0; held && i < MERCHANTS; i++) {
            held = merchantTimes[i] > event.time - HOUR_MS;
        }
        int raised = held && !diversityHeld ? Rule.DIVERSITY.bit : 0;
        diversityHeld = held;
        return raised;
    }

    /** Sets the last time of a merchant, in place of the merchant that was not seen for the longest time. */
    private void noteMerchant(String merchant, long time) {
        int hash = merchant.hashCode();
        int oldest = 0;
        for (int i = 0; i < merchantCount; i++) {
            if (merchantHashes[i] == hash && merchants[i].equals(merchant)) {
                merchantTimes[i] = time;
                return;
            }
            if (merchantTimes[i] < merchantTimes[oldest]) {
                oldest = i;
            }
        }
        int at = merchantCount < MERCHANTS ? merchantCount++ : oldest;
        merchants[at] = merchant;
        merchantHashes[at] = hash;
        merchantTimes[at] = time;
    }

    /** Compares an amount with the mean of those before it, then adds it, after Welford. */
    private int judgeAmount(double amount) {
        int raised = 0;
        if (amounts >= MIN_AMOUNTS) {
            double floor = Math.max(0.01 * MICRO, 0.01 * Math.abs(mean));
            double sigma = Math.max(Math.sqrt(Math.max(squares / (amounts - 1), 0)), floor);
            double distance = Math.abs(amount - mean);
            if (distance > 3 * sigma) {
                raised = distance > 5 * sigma ? Rule.LARGE_AMOUNT.bit : Rule.AMOUNT.bit;
            }
        }
        double delta = amount - mean;
        mean += delta / ++amounts;
        squares += delta * (amount - mean);
        return raised;
    }

    private int judgeTravel(Event event) {
        int raised = 0;
        if (isLocated && (latitude != event.latitude || longitude != event.longitude)) {
            double kilometres = haversine(latitude, longitude, event.latitude, event.longitude);
            double hours = (event.time - locatedTime) / (double) HOUR_MS;
            if (kilometres > 50 && (hours == 0 || kilometres / hours > 900)) {
                raised = Rule.TRAVEL.bit;
            }
        }
        isLocated = true;
        locatedTime = event.time;
        latitude = event.latitude;
        longitude = event.longitude;
        return raised;
    }

    private static double haversine(double latitude, double longitude, double otherLatitude, double otherLongitude) {
        double from = Math.toRadians(latitude);
        double to = Math.toRadians(otherLatitude);
        double north = Math.sin((to - from) / 2);
        double east = Math.sin(Math.toRadians(otherLongitude - longitude) / 2);
        double h = north * north + Math.cos(from) * Math.cos(to) * east * east;
        return 2 * 6371.0088 * Math.asin(Math.min(1, Math.sqrt(h)));
    }

    /** Returns a copy, which a snapshot keeps while the job goes on. */
    public KeyState copy() {
        KeyState copy = new KeyState();
        copy.times = times.clone();
        copy.count = count;
        copy.velocityHeld = velocityHeld;
        copy.burstHeld = burstHeld;
        copy.diversityHeld = diversityHeld;
        copy.merchants = merchants.clone();
        copy.merchantHashes = merchantHashes.clone();
        copy.merchantTimes = merchantTimes.clone();
        copy.merchantCount = merchantCount;
        copy.amounts = amounts;
        copy.mean = mean;
        copy.squares = squares;
        copy.isLocated = isLocated;
        copy.locatedTime = locatedTime;
        copy.latitude = latitude;
        copy.longitude = longitude;
        copy.window.set(window);
        return copy;
    }
}
