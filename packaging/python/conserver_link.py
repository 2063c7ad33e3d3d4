"""Runs a link module of vCon Server for conserver: `module: links.python` in config.yml.

A module has a function `run(vcon_uuid, link_name, opts)`, which reads and writes the vCon in Redis
itself. It returns the UUID of the vCon that the rest of the chain works on, or None (or anything
else that is false) to end the chain.

conserver starts one of these for each lane and keeps it. Each line on standard input is a JSON
object, and each is answered by one on standard output:

    {"module": ..., "path": [...]}              once, at the start  -> {} or {"error": ...}
    {"uuid": ..., "link": ..., "options": ...}  for each vCon
        -> {"uuid": ...}, {"halt": true} or {"error": ..., "transient": ...}

Whatever the module prints, and whatever programs that it starts print, goes to standard error.
Needs nothing besides the standard library of Python 3.9.
"""

import asyncio
import importlib
import inspect
import json
import os
import sys
import traceback

# What these say is no fault of the vCon: the same may work in a moment. By name, because the
# libraries they come from need not be installed.
PASSING = {
    "ConnectionError",
    "TimeoutError",
    "Timeout",
    "APIConnectionError",
    "APITimeoutError",
    "RateLimitError",
    "InternalServerError",
}


def main():
    requests, answers = take_over_streams()
    setup = json.loads(requests.readline())
    # What was started with `python -c` looks for modules in the current directory first.
    if sys.path[:1] == [""]:
        del sys.path[0]
    sys.path[:0] = setup["path"]
    sys.argv = [setup["module"]]
    try:
        run = importlib.import_module(setup["module"]).run
    except BaseException as error:
        traceback.print_exc()
        answer(answers, {"error": f"could not import {setup['module']}: {shown(error)}"})
        return
    answer(answers, {})
    for line in requests:
        request = json.loads(line)
        answer(answers, call(run, request["uuid"], request["link"], request["options"]))


def take_over_streams():
    """Moves the protocol to descriptors of its own, which no program started from here inherits."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    return requests, answers


def call(run, uuid, link, options):
    """Has the module do its work; makes an answer of what comes of it."""
    try:
        result = run(uuid, link, options)
        if inspect.isawaitable(result):
            result = asyncio.run(completed(result))
        if not result:
            return {"halt": True}
        return {} if result is True else {"uuid": str(result)}
    # Also what is no Exception: a module that calls sys.exit() does not end this process.
    except BaseException as error:
        traceback.print_exc()
        return {"error": shown(error), "transient": passes(error)}
    finally:
        flush()


async def completed(awaitable):
    return await awaitable


def shown(error):
    """The end of a traceback, in one line."""
    lines = traceback.format_exception_only(type(error), error)
    text = " ".join("".join(lines).split())
    return text.encode("utf-8", "replace").decode("utf-8")


def passes(error):
    if isinstance(error, (ConnectionError, TimeoutError, MemoryError)):
        return True
    return any(kind.__name__ in PASSING for kind in type(error).__mro__)


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass


def answer(answers, value):
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()


main()
