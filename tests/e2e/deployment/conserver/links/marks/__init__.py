"""Adds the tag `marks:<tag>` to the vCon in Redis."""

from lib import vcons
from lib.calls import record

default_options = {"tag": "default"}


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    uuid, _, options = arguments
    vcon = vcons.load(uuid)
    vcons.add_tag(vcon, "marks", (options or default_options)["tag"])
    vcons.store(uuid, vcon)
    return uuid
