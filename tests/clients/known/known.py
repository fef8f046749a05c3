#!/usr/bin/env python3
"""Holds the results of the client libraries' own suites against what is known to differ, and why.

    known.py RESULTS.json every-phase.txt [same.txt ...]

RESULTS.json: suite -> {"worse": [tests that pass on a plain Redis and not through the proxy]}. A line of a known file is a
suite and a test, in both `*` stands for any run of characters; the lines with `#` above say why. Prints what no line covers,
and the lines that cover nothing in the suites that ran. Exit status 1 if a test is not covered.
"""

import fnmatch
import json
import re
import sys


def lines(path):
    with open(path) as file:
        return [tuple(line.split(None, 1)) for line in file.read().splitlines() if line.strip() and line[0] != "#"]


def fits(text, pattern):
    # Brackets stand for themselves: pytest writes parameters in them.
    return re.fullmatch(fnmatch.translate(pattern.replace("[", "[[]")), text)


def main():
    with open(sys.argv[1]) as file:
        worse = [(suite, test) for suite, result in json.load(file).items() for test in result.get("worse", [])]
    suites = {suite for suite, _ in worse}
    known = [line for path in sys.argv[2:] for line in lines(path)]
    used = set()
    unknown = 0
    for suite, test in worse:
        covering = [line for line in known if fits(suite, line[0]) and fits(test, line[1])]
        used.update(covering)
        if not covering:
            unknown += 1
            print(f"not known: {suite} {test}")
    for line in known:
        if line not in used and any(fits(suite, line[0]) for suite in suites):
            print("covers nothing:", *line)
    print(f"{len(worse)} tests differ, {len(worse) - unknown} of them for a known reason")
    sys.exit(1 if unknown else 0)


if __name__ == "__main__":
    main()
