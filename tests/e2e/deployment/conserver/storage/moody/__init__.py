"""Keeps only which vCons it has seen; fails now and then, and for good where the subject is `unwanted`.

It can neither give back nor remove what it has.
"""

from lib import vcons
from lib.calls import record
from redis_mgr import client


def save(*arguments, **named):
    uuid, options = arguments
    vcon = vcons.load(uuid)
    record(__name__, "save", arguments, named, found=vcon is not None)
    if vcon.get("subject") == "unwanted":
        raise ValueError(f"{uuid} is not wanted here")
    if client.incr("moods") % options["every"] == 0:
        raise TimeoutError("not now")
    client.sadd("moody", uuid)
