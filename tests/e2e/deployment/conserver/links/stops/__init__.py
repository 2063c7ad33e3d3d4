"""Ends the chain of a vCon whose subject is `stops`."""

from lib import vcons
from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid = arguments[0]
    if vcons.load(uuid).get("subject") == "stops":
        return None
    return uuid
