"""Copies a vCon whose subject is `moves on`, and has the chain go on with the copy."""

import uuid as uuids

from lib import vcons
from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid = arguments[0]
    vcon = vcons.load(uuid)
    if vcon.get("subject") != "moves on":
        return uuid
    copy = str(uuids.uuid5(uuids.NAMESPACE_URL, uuid))
    vcons.store(copy, {**vcon, "uuid": copy, "copy_of": uuid})
    return copy
