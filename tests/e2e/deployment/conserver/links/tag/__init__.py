"""The deployment's own link in the place of one that is built in."""

from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    return arguments[0]
