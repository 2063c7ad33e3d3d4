"""A record of every call of a module, with all its arguments: the list `calls` in Redis, in order."""

import json
import os
import types

from redis_mgr import client


def record(module, function, arguments, named=None, **facts):
    """Appends one call."""
    call = {
        "call": f"{module}.{function}",
        "arguments": list(arguments),
        "named": named or {},
        "pid": os.getpid(),
        **facts,
    }
    client.rpush("calls", json.dumps(call, default=plain))


def plain(value):
    """What is no JSON, as JSON."""
    if isinstance(value, types.ModuleType):
        return {"module": value.__name__}
    if isinstance(value, BaseException):
        return {"exception": type(value).__name__, "text": str(value)}
    raise TypeError(f"an argument of the type {type(value).__name__}")
