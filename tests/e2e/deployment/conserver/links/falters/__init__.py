"""Does not reach its server for the first `times` calls of a vCon whose subject is `falters`."""

from lib import vcons
from lib.calls import record
from redis_mgr import client


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid, _, options = arguments
    if vcons.load(uuid).get("subject") == "falters":
        if client.hincrby("falters", uuid, 1) <= options["times"]:
            raise ConnectionError("the server of this link is away")
    return uuid
