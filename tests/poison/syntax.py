"""Cases of records that are not one JSON object in UTF-8, or too large, or nested too deep."""

import json

from builder import case, record, not_json_inside, unreadable, without


def not_objects():
    unreadable("tombstone", None)
    case("empty", [], "malformed")
    for name, text in {
        "white-space-only": " \t\r\n ",
        "null": "null",
        "true": "true",
        "number": "12345",
        "string": '"text"',
        "empty-array": "[]",
        "word": "hello",
        "csv": "e1,transaction,u-1,12.5",
        "xml": "<event id='1'/>",
        "opening-brace": "{",
        "closing-brace": "}",
        "opening-quote": '"',
        "one-zero-byte": "\0",
    }.items():
        unreadable(name, text)
    unreadable("array-around-the-record", "[" + record("array-around-the-record") + "]")
    text = record("text-around-the-record")
    unreadable("record-in-a-string", json.dumps(text))
    for name, value in {
        "trailing-brace": text + "}",
        "trailing-comma-behind": text + ",",
        "trailing-word": text + " x",
        "trailing-zero-byte": text + "\0",
        "two-records": text + text,
        "two-records-on-two-lines": text + "\n" + text,
        "leading-word": "x" + text,
        "leading-comma": "," + text,
        "sequence-separator": "\x1e" + text,
    }.items():
        unreadable(name, value)


def grammar():
    text = record("truncated", {"currency": '"E\\u0055R"'})
    unreadable("truncated-before-the-last-brace", text[:-1])
    unreadable("truncated-in-a-string", text[:20])
    unreadable("truncated-in-a-name", text[:5])
    unreadable("truncated-after-a-name", '{"event_id"')
    unreadable("truncated-after-a-colon", '{"event_id":')
    unreadable("truncated-after-a-value", '{"event_id":"e"')
    unreadable("truncated-after-a-comma", '{"event_id":"e",')
    unreadable("truncated-in-a-word", '{"amount":nul')
    unreadable("truncated-in-a-number", '{"amount":-')
    unreadable("truncated-in-an-escape", '{"event_id":"e\\')
    unreadable("truncated-in-an-escape-of-four-digits", '{"event_id":"\\u00')
    unreadable("truncated-between-surrogates", '{"event_id":"\\ud834')
    unreadable("trailing-comma-in-an-object", record("trailing-comma-in-an-object", extra="").replace("}", ",}"))
    unreadable("leading-comma-in-an-object", '{,"event_id":"e"}')
    unreadable("two-commas", record("two-commas").replace(",", ",,", 1))
    unreadable("no-comma", record("no-comma").replace(",", " ", 1))
    unreadable("two-colons", record("two-colons").replace(":", "::", 1))
    unreadable("no-colon", record("no-colon").replace(":", " ", 1))
    unreadable("equals-for-colon", record("equals-for-colon").replace(":", "=", 1))
    unreadable("single-quotes", record("single-quotes").replace('"', "'"))
    unreadable("name-without-quotes", record("name-without-quotes", extra="x:1"))
    unreadable("number-for-a-name", record("number-for-a-name", extra="1:1"))
    unreadable("line-comment", record("line-comment", extra='"x":1//\n'))
    unreadable("block-comment", record("block-comment", extra='"x":/* */1'))
    unreadable("hash-comment", "# comment\n" + record("hash-comment"))
    for name, text in {
        "NaN": "NaN",
        "nan": "nan",
        "infinity": "Infinity",
        "minus-infinity": "-Infinity",
        "inf": "inf",
        "undefined": "undefined",
        "word-with-a-capital": "True",
        "word-and-more": "nullx",
        "plus-sign": "+1",
        "only-a-minus": "-",
        "two-minuses": "--1",
        "minus-and-space": "- 1",
        "leading-zero": "01",
        "minus-and-leading-zero": "-01",
        "two-zeros": "00",
        "leading-point": ".5",
        "minus-and-leading-point": "-.5",
        "trailing-point": "1.",
        "point-and-exponent": "1.e5",
        "two-points": "1.2.3",
        "exponent-without-digits": "1e",
        "exponent-with-sign-alone": "1e+",
        "exponent-with-fraction": "1e1.5",
        "hexadecimal": "0x10",
        "underscore": "1_000",
        "decimal-comma": "1,5",
        "long-suffix": "1L",
        "full-width-digit": "１",
        "arabic-digit": "\u0661",
        "array-not-closed": "[1",
        "array-closed-by-a-brace": "[1}",
        "array-with-a-trailing-comma": "[1,]",
        "array-without-a-comma": "[1 2]",
        "array-with-a-colon": '["a":1]',
        "object-closed-by-a-bracket": '{"a":1]',
        "object-without-a-value": '{"a"}',
        "nothing": "",
    }.items():
        not_json_inside("value-" + name, text)
    case("amount-NaN", record("amount-NaN", {"amount": "NaN"}), "malformed")
    case("amount-infinity", record("amount-infinity", {"amount": "-Infinity"}), "malformed")
    for name, space in {
        "form-feed": "\f",
        "vertical-tab": "\v",
        "no-break-space": "\u00a0",
        "line-separator": "\u2028",
        "zero-byte": "\0",
        "zero-width-space": "\u200b",
    }.items():
        unreadable(f"{name}-between-tokens", record(f"{name}-between-tokens").replace(",", f",{space}", 1))


def bytes_and_strings():
    text = record("encoding")
    unreadable("bom-utf-8", [b"\xef\xbb\xbf", text])
    unreadable("bom-alone", b"\xef\xbb\xbf")
    unreadable("utf-16-with-bom", text.encode("utf-16"))
    unreadable("utf-16-without-bom", text.encode("utf-16-le"))
    unreadable("utf-32-without-bom", text.encode("utf-32-be"))
    unreadable("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00")
    unreadable("only-bytes-of-ones", b"\xff" * 16)
    for name, raw in {
        "latin-1": b"\xe9",
        "continuation-alone": b"\x80",
        "overlong-slash": b"\xc0\xaf",
        "overlong-zero": b"\xc0\x80",
        "overlong-three-bytes": b"\xe0\x80\xaf",
        "surrogate-in-utf-8": b"\xed\xa0\x80",
        "surrogate-pair-in-utf-8": b"\xed\xa0\xb4\xed\xb4\x9e",
        "beyond-the-last-code-point": b"\xf4\x90\x80\x80",
        "five-byte-form": b"\xf8\x88\x80\x80\x80",
        "cut-three-byte-form": b"\xe2\x82",
        "byte-fe": b"\xfe",
    }.items():
        before, after = record(f"utf-8-{name}", {"currency": '"<>"'}).split("<>")
        unreadable(f"utf-8-{name}", [before, raw, after])
    unreadable("utf-8-broken-in-a-name", ['{"event_id":"e","', b"\xff", '":1}'])
    unreadable("utf-8-cut-at-the-end", ['{"event_id":"', b"\xf0\x9d"])
    for name, char in {"zero": "\0", "newline": "\n", "tab": "\t", "escape": "\x1b", "unit-separator": "\x1f"}.items():
        unreadable(f"control-{name}-in-a-string", record(f"control-{name}-in-a-string", {"currency": f'"{char}"'}))
    unreadable("control-newline-in-a-name", record("control-newline-in-a-name", extra='"a\nb":1'))
    for name, escape in {
        "x": "\\x41",
        "single-quote": "\\'",
        "zero": "\\0",
        "capital-u": "\\U0041",
        "braces": "\\u{41}",
        "three-digits": "\\u041",
        "no-digits": "\\u",
        "not-hexadecimal": "\\u00g1",
        "sign-in-the-digits": "\\u+041",
        "space-in-the-digits": "\\u 041",
        "newline": "\\\n",
    }.items():
        not_json_inside(f"escape-{name}", f'"{escape}"')
    for name, escape in {
        "high-alone": "\\ud834",
        "low-alone": "\\udd1e",
        "reversed": "\\udd1e\\ud834",
        "two-high": "\\ud834\\ud834",
        "high-and-letter": "\\ud834x",
        "high-and-other-escape": "\\ud834\\n",
        "high-and-ordinary-unit": "\\ud834\\u0041",
        "pair-and-a-half": "\\ud834\\udd1e\\ud834",
    }.items():
        not_json_inside(f"surrogate-{name}", f'"{escape}"')
    unreadable("surrogate-in-a-name", record("surrogate-in-a-name", extra='"\\ud800":1'))
    unreadable("surrogate-in-a-known-field", record("surrogate-in-a-known-field", {"currency": '"\\uDBFF"'}))
    unreadable("zero-in-the-event-id", record("", {"event_id": '"a\\u0000b"'}))
    unreadable("zero-in-the-key", record("zero-in-the-key", {"user_id": '"\\u0000"'}))
    unreadable("zero-in-an-unknown-field", record("zero-in-an-unknown-field", extra='"x":"\\u0000"'))
    unreadable("zero-in-a-name", record("zero-in-a-name", extra='"x\\u0000":1'))
    deep = {"attributes": '{"a":[{"b":"\\u0000"}]}'}
    unreadable("zero-deep-in-attributes", record("zero-deep-in-attributes", deep))
    deep = {"attributes": '{"a":[{"\\u0000":1}]}'}
    unreadable("zero-in-a-name-deep-in-attributes", record("zero-in-a-name-deep-in-attributes", deep))
    unreadable("zero-ahead-of-other-faults", '{"event_id":7,"event_id":"\\u0000"}')


def sizes():
    for depth in (10_000, 300_000):
        unreadable(f"arrays-{depth}-deep", ['{"x":', ("[", depth), ("]", depth), "}"])
        unreadable(f"objects-{depth}-deep", [('{"x":', depth), "1", ("}", depth)])
        unreadable(f"brackets-{depth}-never-closed", [("[", depth)])
    unreadable("brackets-in-an-endless-string", ['{"x":"', ('\\"[', 200_000), "\\"])
    name = "arrays-65-deep"
    unreadable(name, [record(name)[:-1] + ',"x":', ("[", 64), ("]", 64), "}"])
    name = "attributes-65-deep"
    unreadable(name, [record(name)[:-1] + ',"attributes":', ('{"a":', 64), "1", ("}", 64), "}"])
    name = "arrays-64-deep"
    case(name, [record(name)[:-1] + ',"x":', ("[", 63), ("]", 63), "}"], "valid", event_id=name)
    name = "attributes-64-deep"
    case(name, [record(name)[:-1] + ',"attributes":', ('{"a":', 63), "1", ("}", 63), "}"], "valid", event_id=name)
    name = "brackets-in-a-string-are-no-nesting"
    case(name, [record(name)[:-1] + ',"x":"', ("[{", 200), '\\"', ("[{", 200), '"}'], "valid", event_id=name)
    name = "many-siblings-are-no-nesting"
    case(name, [record(name)[:-1] + ',"x":[[]', (",[]", 500), "]}"], "valid", event_id=name)

    mebibyte = 1 << 20
    name = "one-mebibyte"
    text = record(name)
    case(name, [text, (" ", mebibyte - len(text))], "valid", event_id=name)
    unreadable("one-mebibyte-and-a-byte", [record(name), (" ", mebibyte + 1 - len(text))])
    unreadable("ten-megabytes-of-text", ['{"event_id":"', ("x", 10_000_000), '"}'])
    unreadable("ten-megabytes-of-zero-bytes", [("\0", 10_000_000)])
    unreadable("ten-megabytes-of-digits", [record("ten-megabytes-of-digits")[:-1] + ',"x":', ("1", 10_000_000), "}"])

    start = record("attributes-size")[:-1]
    for name, letters, expect in (("64-kib", 65_536 - 8, "valid"), ("64-kib-and-a-byte", 65_536 - 7, "invalid")):
        name = f"attributes-of-{name}"
        value = [record(name)[:-1] + ',"attributes":{"a":"', ("x", letters), '"}}']
        if expect == "valid":
            case(name, value, expect, event_id=name)
        else:
            without(name, value, {"attributes": expect})
    for name, value in {
        "attributes-of-spaces": [',"attributes":{', (" ", 65_536), "}}"],
        "unknown-field-of-70-kb": [',"x":"', ("x", 70_000), '"}'],
        "attributes-and-unknown-fields-together-too-large":
            [',"x":"', ("x", 40_000), '","attributes":{"a":"', ("y", 40_000), '"}}'],
    }.items():  # fmt: skip
        without(name, [record(name)[:-1] + value[0], *value[1:]], {"attributes": "invalid"})
    for name, letters, expect in (("64-kib", 65_536 - 23, "valid"), ("64-kib-and-a-byte", 65_536 - 22, "invalid")):
        name = f"attributes-and-unknown-fields-of-{name}"
        # Merged: {"a": 1,"x":"…","y":[ ]}
        value = [record(name)[:-1] + ',"x" : "', ("x", letters), '","attributes":{ "a": 1 },"y": [ ]}']
        if expect == "valid":
            case(name, value, expect, event_id=name)
        else:
            without(name, value, {"attributes": expect})
    name = "unknown-field-that-attributes-replace-does-not-count"
    value = [record(name)[:-1] + ',"x":"', ("x", 70_000), '","attributes":{"x":1}}']
    case(name, value, "valid", attributes='{"x":1}')
    name = "unknown-field-that-comes-again-does-not-count"
    value = [record(name)[:-1] + ',"x":"', ("x", 70_000), '","x":2}']
    case(name, value, "valid", attributes='{"x":2}')
    case("event-id-of-a-megabyte", ['{"event_id":"', ("x", 1_000_000), '",' + start[1:] .split(",", 1)[1] + "}"],
         "invalid", "event_id")  # fmt: skip


GROUPS = (not_objects, grammar, bytes_and_strings, sizes)
