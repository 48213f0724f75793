package peers;

import java.util.HashMap;
import java.util.Map;

/** Options of the command line, as {@code --name value}. */
public final class Options {
    private final Map<String, String> values = new HashMap<>();

    public Options(String[] arguments, int from) {
        for (int i = from; i < arguments.length; i += 2) {
            if (!arguments[i].startsWith("--") || i + 1 == arguments.length) {
                throw new IllegalArgumentException(arguments[i] + ": expected --name value");
            }
            values.put(arguments[i].substring(2), arguments[i + 1]);
        }
    }

    public String text(String name) {
        String value = values.get(name);
        if (value == null) {
            throw new IllegalArgumentException("--" + name + " is missing");
        }
        return value;
    }

    public int number(String name) {
        return Integer.parseInt(text(name));
    }
}
