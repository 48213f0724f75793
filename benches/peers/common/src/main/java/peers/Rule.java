package peers;

import java.nio.charset.StandardCharsets;

/** The rules that raise alerts. The bit of a rule in the result of {@link KeyState#process} is its ordinal. */
public enum Rule {
    VELOCITY("velocity_spike", "high"),
    BURST("rapid_fire_burst", "high"),
    DIVERSITY("merchant_diversity", "medium"),
    AMOUNT("amount_anomaly", "medium"),
    LARGE_AMOUNT("amount_anomaly", "high"),
    TRAVEL("impossible_travel", "critical");

    private static final Rule[] ALL = values();

    public final String id;
    public final String severity;
    final int bit = 1 << ordinal();

    Rule(String id, String severity) {
        this.id = id;
        this.severity = severity;
    }

    /** A receiver of the alerts of an event. */
    public interface Receiver {
        void receive(byte[] alert);
    }

    /** Sends the alert of each rule that an event raised. */
    public static void send(int raised, Event event, Receiver receiver) {
        for (int rest = raised; rest != 0; rest &= rest - 1) {
            receiver.receive(ALL[Integer.numberOfTrailingZeros(rest)].alert(event));
        }
    }

    private byte[] alert(Event event) {
        String text = "{\"alert_id\":\"" + id + ":1:" + event.user + ":" + event.id
                + "\",\"status\":\"raised\",\"rule\":\"" + id + "\",\"rule_version\":1,\"severity\":\"" + severity
                + "\",\"key\":\"" + event.user + "\",\"event_ids\":[\"" + event.id
                + "\"],\"event_time\":" + event.time + "}";
        return text.getBytes(StandardCharsets.UTF_8);
    }
}
