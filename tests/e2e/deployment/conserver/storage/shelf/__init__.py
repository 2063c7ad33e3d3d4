"""vCons as files in one folder."""

import json
import os
import pathlib

import settings
from lib import vcons
from lib.calls import record

default_options = {"folder": settings.SHELF_FOLDER, "indent": 1}


def path_of(uuid, options):
    return pathlib.Path(options["folder"], f"{uuid}.json")


def save(*arguments, **named):
    uuid, options = arguments
    vcon = vcons.load(uuid)
    record(__name__, "save", arguments, named, found=vcon is not None)
    path = path_of(uuid, options)
    draft = path.with_name(f".{uuid}.{os.getpid()}")
    draft.write_text(json.dumps(vcon, indent=options.get("indent")))
    draft.replace(path)


def get(*arguments, **named):
    record(__name__, "get", arguments, named)
    path = path_of(*arguments)
    return json.loads(path.read_text()) if path.exists() else None


def delete(*arguments, **named):
    record(__name__, "delete", arguments, named)
    path = path_of(*arguments)
    if not path.exists():
        return False
    path.unlink()
    return True
