"""Takes its time."""

import time

from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    time.sleep(arguments[2]["seconds"])
    return arguments[0]
