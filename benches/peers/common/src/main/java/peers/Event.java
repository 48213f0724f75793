package peers;

/** A transaction. After parsing, nobody changes it. */
public final class Event {
    public String id;
    public String user;
    public String merchant;
    /** Event time in milliseconds since 1970. */
    public long time;
    /** Amount in millionths. */
    public long amount;
    public boolean hasAmount;
    public boolean hasLocation;
    public double latitude;
    public double longitude;
}
