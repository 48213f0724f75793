"""Writes the input of the comparison: transactions as NDJSON, in the order of event time, the same for the same arguments.

    python3 generate.py --events 3000000 --users 50000 --seed 11 FILE

Keys are skewed: the user at a share s of all has s³ as the expected share of events, so that of 50,000 users the first has 2.7 %
and the first hundredth a fifth. There are 500 events to a second of event time. All five patterns match.
"""

import argparse
import random

START_MS = 1_760_000_000_000
STEPS_MS = (0, 1, 2, 3, 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("file")
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    time = START_MS
    with open(arguments.file, "w", encoding="utf-8") as file:
        for number in range(arguments.events):
            time += generator.choice(STEPS_MS)
            user = int(arguments.users * generator.random() ** 3)
            file.write(event(generator, number, user, time))


def event(generator, number, user, time):
    """Returns a line. One amount of a hundred is unusual, and one location of a thousand is far away."""
    line = f'{{"event_id":"e{number}","event_type":"transaction","user_id":"u{user}","event_time":{time}'
    if generator.random() < 0.95:
        factor = generator.choice((3, 9)) if generator.random() < 0.01 else 1
        line += f',"amount":{max(0.01, generator.gauss(50, 8) * factor):.2f}'
    if generator.random() < 0.9:
        line += f',"merchant_id":"m{min(999, int(generator.paretovariate(0.8)))}"'
    if generator.random() < 0.7:
        away = 3 if generator.random() < 0.001 else generator.choice((0, 0, 0, 0, 0.1))
        line += f',"location":{{"lat":{user * 7919 % 80_000 / 1000 + away:.3f},"lon":{user * 104_729 % 170_000 / 1000:.3f}}}'
    return line + "}\n"


main()
