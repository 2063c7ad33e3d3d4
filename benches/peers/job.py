"""The job of the Python peers: what conserver does for a vCon in the same chain.

Reads the document, tags it, saves it, writes it back and announces it. Each thread has sessions of its own with the
servers. Beside it, what hands jobs in: all at once, or one by one to time each.
"""

import json
import os
import random
import sys
import threading
import time
from datetime import datetime

import redis

REDIS_URL = os.environ["REDIS_URL"]
ANNOUNCED = "done"
# A storage as it stands in config.yml, or null.
STORAGE = json.loads(os.environ["PEER_STORAGE"])

UPSERT = """INSERT INTO vcons (id, vcon, uuid, created_at, updated_at, subject, vcon_json)
    VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb)
    ON CONFLICT (id) DO UPDATE SET vcon = excluded.vcon, uuid = excluded.uuid, created_at = excluded.created_at,
    updated_at = excluded.updated_at, subject = excluded.subject, vcon_json = excluded.vcon_json"""

own = threading.local()


def run(uuid):
    """Does the whole job for one vCon."""
    if not hasattr(own, "redis"):
        own.redis = redis.Redis.from_url(REDIS_URL)
        own.save = storage()
    key = f"vcon:{uuid}"
    vcon = json.loads(own.redis.get(key))
    tag(vcon, "checked")
    text = json.dumps(vcon, ensure_ascii=False, separators=(",", ":"))
    own.save(uuid, vcon, text)
    # Both in one round trip and one transaction.
    steps = own.redis.pipeline()
    steps.set(key, text, keepttl=True)
    steps.rpush(ANNOUNCED, uuid)
    steps.execute()


def tag(vcon, name):
    attachments = vcon.setdefault("attachments", [])
    tags = next((it for it in attachments if it.get("purpose") == "tags"), None)
    if tags is None:
        tags = {"purpose": "tags", "body": "[]", "encoding": "json"}
        attachments.append(tags)
    tags["body"] = json.dumps(json.loads(tags["body"]) + [f"{name}:{name}"])


def storage():
    if STORAGE is None:
        return lambda uuid, vcon, text: None
    options = STORAGE["options"]
    if STORAGE["module"] == "storage.file":
        return lambda uuid, vcon, text: save_file(options["path"], uuid, vcon, text)
    import psycopg

    session = psycopg.connect(
        host=options["host"],
        port=options["port"],
        dbname=options["database"],
        user=options["user"],
        password=options["password"],
        autocommit=True,
    )
    return lambda uuid, vcon, text: save_row(session, uuid, vcon, text)


def save_row(session, uuid, vcon, text):
    created_at = datetime.fromisoformat(vcon["created_at"]).replace(tzinfo=None)
    row = (uuid, vcon["vcon"], uuid, created_at, datetime.now(), vcon.get("subject"), text)
    session.execute(UPSERT, row, prepare=True)


def save_file(path, uuid, vcon, text):
    """Nobody sees half a file, and it is on disk with its name."""
    folder = os.path.join(path, *vcon["created_at"][:10].split("-"))
    os.makedirs(folder, exist_ok=True)
    draft = os.path.join(folder, f".{uuid}.tmp")
    with open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(draft, os.path.join(folder, f"{uuid}.json"))
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)


def main(enqueue, enqueue_all):
    """Hands in the jobs whose ids come by standard input."""
    uuids = sys.stdin.read().split()
    if sys.argv[1] == "enqueue":
        enqueue_all(uuids)
        return
    # Times each from before it is handed in until it is announced, in milliseconds; for the first, clients connect.
    announced = redis.Redis.from_url(REDIS_URL)
    for number, uuid in enumerate(uuids):
        time.sleep(min(random.expovariate(20), 0.25))
        start = time.perf_counter()
        enqueue(uuid)
        if announced.blpop([ANNOUNCED], timeout=60) is None:
            sys.exit(f"{uuid} was not announced in time")
        if number > 0:
            print((time.perf_counter() - start) * 1e3)
