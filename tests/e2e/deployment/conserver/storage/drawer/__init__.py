"""vCons as fields of a hash in Redis."""

import json

from lib import vcons
from lib.calls import record
from redis_mgr import client

default_options = {"drawer": "drawer", "locked": False}


def save(*arguments, **named):
    uuid, options = arguments
    vcon = vcons.load(uuid)
    record(__name__, "save", arguments, named, found=vcon is not None)
    client.hset(options["drawer"], uuid, json.dumps(vcon))


def get(*arguments, **named):
    record(__name__, "get", arguments, named)
    uuid, options = arguments
    text = client.hget(options["drawer"], uuid)
    return None if text is None else json.loads(text)


def delete(*arguments, **named):
    record(__name__, "delete", arguments, named)
    uuid, options = arguments
    return client.hdel(options["drawer"], uuid) > 0
