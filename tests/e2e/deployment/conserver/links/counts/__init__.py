"""Counts its calls in this process."""

from lib.calls import record

count = 0


def run(*arguments, **named):
    global count
    count += 1
    record(__name__, "run", arguments, named, count=count)
    return arguments[0]
