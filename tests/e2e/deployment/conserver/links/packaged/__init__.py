"""Notes the size that the vCon has as BSON: with a package of others."""

import bson

from lib import vcons
from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid = arguments[0]
    vcon = vcons.load(uuid)
    vcon.pop("bson_size", None)
    vcon["bson_size"] = len(bson.encode(vcon))
    vcons.store(uuid, vcon)
    return uuid
