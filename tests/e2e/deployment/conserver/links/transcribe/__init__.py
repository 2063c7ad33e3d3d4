"""Transcribes nothing: it is here for the names that it used to have."""

from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    return arguments[0]
