"""The CEL expressions of the configurations that own_rules.py judges, each beside a function of the same meaning.

A function takes an event and returns the value, or None where the expression has none: an absent field has no value, and
nothing that is computed from it has one. Numbers are millionths.
"""

from own_fields import MICRO


def field(name):
    return lambda event: event.fields.get(name)


def number(name):
    """A field that is a whole number, as millionths."""
    return lambda event: None if name not in event.fields else event.fields[name] * MICRO


def compare(name, holds):
    return lambda event: None if name not in event.fields else holds(event.fields[name])


def both(first, second):
    """`first && second`: false if one is false, whatever the other is."""

    def value(event):
        values = (first(event), second(event))
        if False in values:
            return False
        return None if None in values else True

    return value


def is_kind(kind):
    return compare("event_type", lambda value: value == kind)


def amount(holds):
    return compare("amount", holds)


def net(event):
    fields = event.fields
    return None if "amount" not in fields or "fee" not in fields else fields["amount"] - fields["fee"]


def by_amount(event):
    value = event.fields.get("amount")
    return None if value is None else "critical" if value >= 990 * MICRO else "low"


def by_country(event):
    country = event.fields.get("country")
    return None if country is None else "high" if country in ("KP", "FR") else "low"


EXPRESSIONS = {
    "event.amount": field("amount"),
    "event.merchant_id": field("merchant_id"),
    "event.currency": field("currency"),
    "event.card": field("card"),
    "event.items": number("items"),
    "event.declined": field("declined"),
    "event.amount - event.fee": net,
    "event.items > 5": compare("items", lambda value: value > 5),
    "has(event.declined)": lambda event: "declined" in event.fields,
    "event.dep_delay": number("dep_delay"),
    "event.dep_delay > 60": compare("dep_delay", lambda value: value > 60),
    "has(event.dep_delay)": lambda event: "dep_delay" in event.fields,
    "!has(event.dep_delay)": lambda event: "dep_delay" not in event.fields,
    "event.amount >= 950.0": amount(lambda value: value >= 950 * MICRO),
    "event.amount > 100.0": amount(lambda value: value > 100 * MICRO),
    "event.event_type == 'payment'": is_kind("payment"),
    "event.event_type != 'login'": compare("event_type", lambda value: value != "login"),
    "event.event_type == 'login'": is_kind("login"),
    "event.event_type == 'refund'": is_kind("refund"),
    "event.event_type == 'payment' && event.amount > 100.0": both(
        is_kind("payment"), amount(lambda value: value > 100 * MICRO)
    ),
    "event.event_type == 'payment' && event.declined": both(is_kind("payment"), field("declined")),
    "event.event_type == 'payment' && !event.declined": both(
        is_kind("payment"), compare("declined", lambda value: not value)
    ),
    "event.amount >= 990.0 ? 'critical' : 'low'": by_amount,
    "event.country in ['KP', 'FR'] ? 'high' : 'low'": by_country,
}


def expression(text):
    """Returns the function of an expression."""
    if text not in EXPRESSIONS:
        raise ValueError(f"own_expressions.py has no function for {text!r}")
    return EXPRESSIONS[text]
