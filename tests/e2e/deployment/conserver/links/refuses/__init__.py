"""Fails for a vCon whose subject is `refused`."""

from lib import vcons
from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid = arguments[0]
    if vcons.load(uuid).get("subject") == "refused":
        raise ValueError(f"nothing can be done\nfor {uuid}")
    return uuid
