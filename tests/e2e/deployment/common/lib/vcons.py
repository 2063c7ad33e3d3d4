"""vCons in Redis, as plain strings or as RedisJSON, whichever the key holds."""

import json

from redis_mgr import client


def load(uuid):
    """Returns the document, or None."""
    key = f"vcon:{uuid}"
    if client.type(key) == "ReJSON-RL":
        text = client.execute_command("JSON.GET", key)
    else:
        text = client.get(key)
    return None if text is None else json.loads(text)


def store(uuid, vcon):
    """Writes the document, and keeps its expiry."""
    key, text = f"vcon:{uuid}", json.dumps(vcon)
    if client.type(key) == "ReJSON-RL":
        client.execute_command("JSON.SET", key, "$", text)
    else:
        client.set(key, text, keepttl=True)


def add_tag(vcon, name, value):
    """Adds a tag that is not there yet."""
    attachments = vcon.setdefault("attachments", [])
    tags = next((it for it in attachments if it.get("purpose") == "tags"), None)
    if tags is None:
        tags = {"purpose": "tags", "body": "[]", "encoding": "json"}
        attachments.append(tags)
    body = tags["body"]
    body = json.loads(body) if isinstance(body, str) else body
    if f"{name}:{value}" not in body:
        body.append(f"{name}:{value}")
    tags["body"] = json.dumps(body)
