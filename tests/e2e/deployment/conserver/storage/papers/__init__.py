"""vCons as documents of MongoDB."""

import pymongo

from lib import vcons
from lib.calls import record

default_options = {"url": "mongodb://localhost:27017", "database": "conserver", "collection": "vcons"}

clients = {}


def collection(options):
    url = options["url"]
    if url not in clients:
        clients[url] = pymongo.MongoClient(url, serverSelectionTimeoutMS=2000)
    return clients[url][options["database"]][options["collection"]]


def save(*arguments, **named):
    uuid, options = arguments
    vcon = vcons.load(uuid)
    record(__name__, "save", arguments, named, found=vcon is not None)
    collection(options).replace_one({"_id": uuid}, {**vcon, "_id": uuid}, upsert=True)


def get(*arguments, **named):
    record(__name__, "get", arguments, named)
    uuid, options = arguments
    vcon = collection(options).find_one({"_id": uuid})
    if vcon is not None:
        del vcon["_id"]
    return vcon


def delete(*arguments, **named):
    record(__name__, "delete", arguments, named)
    uuid, options = arguments
    return collection(options).delete_one({"_id": uuid}).deleted_count > 0
