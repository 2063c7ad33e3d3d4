"""Runs Python modules of vCon Server, unchanged, for conserver.

conserver gives this script to a Python interpreter on standard input, one for each lane that needs
Python, and then writes one JSON object per line. Each is answered by one line of JSON on standard
output. The first line is the greeting; all others say in `do` what to do:

    {"path": [...], "imports": [...], "load": [...], "hooks": bool}  -> {"hooks": [name, ...]}
    load        module, kind, vendor?                      -> {}
    link        module, uuid, name, options                -> {}, {"uuid": ...} or {"halt": true}
    save        module, uuid, options?                     -> {}
    get         module, uuid, options?                     -> {"vcon": {...}} or {}
    delete      module, uuid, options?                     -> {"deleted": bool}
    trace       module, in, out, name, links, index, options               -> {}
    before      uuid, chain, context                                       -> {} or {"halt": true}
    after       uuid, chain, context, error                                -> {}
    after_link  uuid, link, module, options, status, error, parties, vendor?   -> {}
    look        modules: [{module, kind, vendor?}, ...]    -> {"missing": [{module, why, absent}]}

A request that fails is answered by {"error": text, "transient": bool}. The process ends after a
greeting that fails, and at the end of standard input.

Modules read and write the vCon in Redis themselves. Whatever they and their programs print goes to
standard error: the protocol has descriptors of its own, which no program and no fork inherits.

Needs only the standard library of Python 3.9 or newer.
"""

import sys

# `python -c` looks in the current directory first, even for the modules that are imported here.
if sys.path[:1] == [""]:
    del sys.path[0]

import ast
import errno
import faulthandler
import fcntl
import importlib
import inspect
import json
import os
import signal
import traceback
from types import ModuleType

# The function that a module of a kind must have.
REQUIRED = {"link": "run", "tracer": "run", "storage": "save", "import": None}

# The modules that may have hooks, and their hooks.
HOOKS = {"hook": ["before_processing", "after_processing"], "after_link_hook": ["after_link"]}

# Replaces the older links that were made for one vendor each, unless they are still there.
TRANSCRIBE = "links.transcribe"

# Errors that are no fault of the vCon: a later attempt may succeed. They are known by name, because
# the libraries they come from need not be installed.
TRANSIENT = {
    "ConnectionError",
    "TimeoutError",
    "timeout",  # socket.timeout until Python 3.9
    "Timeout",
    "gaierror",  # socket
    "URLError",  # urllib
    "NewConnectionError",  # urllib3
    "MaxRetryError",
    "ProtocolError",
    "ReadTimeoutError",
    "ConnectTimeoutError",
    "ConnectError",  # httpx
    "TimeoutException",
    "TransportError",
    "ClientConnectionError",  # aiohttp
    "EndpointConnectionError",  # botocore
    "AutoReconnect",  # pymongo
    "ConnectionFailure",
    "NoValidConnectionsError",  # paramiko
    "SSHException",
    "OperationalError",  # databases: PEP 249
    "APIConnectionError",  # openai
    "APITimeoutError",
    "RateLimitError",
    "InternalServerError",
}

# What a system says when it is full, broken or cut off.
TRANSIENT_ERRNO = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}

# The daemon hides secrets in it, and cuts it further.
LONGEST_ERROR = 64_000

# A module may replace json.loads and json.dumps for its own purposes.
decode = json.loads
encode = json.JSONEncoder(allow_nan=False).encode


class NotLoaded(Exception):
    """A module cannot be used. `why` is the cause alone; `absent`: the module does not exist."""

    def __init__(self, text, why, absent=False):
        super().__init__(text)
        self.why = why
        self.absent = absent


def main():
    streams = Streams()
    # Not ignored, because programs that modules start would inherit that.
    signal.signal(signal.SIGINT, lambda *_: None)
    sys.argv = ["conserver_host.py"]
    host = Host(streams)
    while True:
        line = streams.requests.readline()
        # At the end of input there is nothing, or half a line of a daemon that was killed.
        if not line.endswith(b"\n"):
            break
        streams.answer(host.respond(line))
        if not host.is_greeted:
            break


class Streams:
    """The two pipes of the protocol, and the standard streams, which are the modules'.

    What must outlast a module has a high number, so that it does no harm to close the standard
    streams, or to call os.closerange(0, 20).
    """

    def __init__(self):
        self.in_child = False
        self.requests = os.fdopen(high_copy(0), "rb", closefd=False)
        self.answers = os.fdopen(high_copy(1), "wb", closefd=False)
        self.errors = os.fdopen(high_copy(2), "w", 1, errors="backslashreplace", closefd=False)
        null = os.open(os.devnull, os.O_RDONLY)
        self.originals = (high_copy(null), self.errors.fileno(), self.errors.fileno())
        os.close(null)
        os.dup2(self.originals[0], 0)
        os.dup2(self.originals[1], 1)
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        faulthandler.enable(self.errors)
        os.register_at_fork(after_in_child=self.enter_child)

    def answer(self, text):
        self.answers.write(text.encode())
        self.answers.write(b"\n")
        self.answers.flush()

    def enter_child(self):
        """Takes the protocol, which is the parent's, from a process that a module has forked."""
        self.in_child = True
        for stream in (self.requests, self.answers):
            try:
                os.close(stream.fileno())
            except OSError:
                pass

    def leave_child(self, error=None):
        """Ends a forked process that has come back from the module, as a program would end."""
        status = 0
        if isinstance(error, SystemExit):
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            self.print_traceback()
            status = 1
        self.flush()
        os._exit(status & 0xFF)

    def mend(self):
        """Opens the standard streams again that a module has closed."""
        self.flush()
        try:
            self.reopen()
        except Exception:
            # The answer matters more than where the next output goes.
            self.print_traceback()

    def reopen(self):
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            try:
                os.fstat(number)
            except OSError:
                os.dup2(self.originals[number], number)
            if is_closed(getattr(sys, name, None)):
                mode = "w" if number else "r"
                stream = open(number, mode, 1, errors="backslashreplace", closefd=False)
                setattr(sys, name, stream)

    def print_traceback(self):
        self.flush()
        try:
            traceback.print_exc(file=self.errors)
        except Exception:
            pass

    def flush(self):
        for name in ("stdout", "stderr"):
            # It may be closed, or whatever a module has put in its place.
            try:
                getattr(sys, name).flush()
            except Exception:
                pass


class Host:
    """The modules of a lane, and what is kept from one request to the next."""

    def __init__(self, streams):
        self.streams = streams
        self.is_greeted = False
        # (name, kind) -> (module, vendor); the vendor only if it is TRANSCRIBE for an older link
        self.modules = {}
        # name -> function
        self.hooks = {}
        # The UUID and context that `before_processing` was given last.
        self.before = (None, None)
        # What the last link or tracer raised.
        self.raised = None

    def respond(self, line):
        """Does what a line asks for. Returns the line that answers it."""
        try:
            request = decode(line)
            perform = REQUESTS[request["do"]] if self.is_greeted else Host.greet
            answer = encode(perform(self, request))
        # Not only an Exception: a module that calls sys.exit() must not end this process.
        except BaseException as error:
            self.streams.print_traceback()
            try:
                failure = {"error": shown(error), "transient": is_transient(error)}
            except BaseException:
                # What a module raises may fail even to be looked at.
                failure = {"error": type(error).__name__, "transient": False}
            answer = encode(failure)
        self.streams.mend()
        return answer

    def greet(self, setup):
        # Absolute, because a module may change the current directory.
        sys.path[:0] = map(os.path.abspath, setup["path"])
        for name in setup["imports"]:
            self.imported(name)
        for wanted in setup["load"]:
            self.load(wanted)
        if setup["hooks"]:
            self.load_hooks()
        self.is_greeted = True
        return {"hooks": list(self.hooks)}

    def load_hooks(self):
        for name, hooks in HOOKS.items():
            try:
                module = self.imported(name)
            except NotLoaded as error:
                if error.absent:
                    continue
                raise
            functions = {hook: getattr(module, hook, None) for hook in hooks}
            for hook, function in functions.items():
                if callable(function) and not is_idle(hook, function):
                    self.hooks[hook] = function

    def load(self, wanted):
        module, _ = self.module(wanted["module"], wanted["kind"], wanted.get("vendor"))
        if wanted["kind"] != "storage":
            return {}
        has = [name for name in ("save", "get", "delete") if hasattr(module, name)]
        return {"functions": has}

    def look(self, request):
        missing = []
        for wanted in request["modules"]:
            try:
                self.load(wanted)
            except NotLoaded as error:
                name = wanted["module"]
                missing.append({"module": name, "why": error.why, "absent": error.absent})
        return {"missing": missing}

    def link(self, request):
        module, vendor = self.module(request["module"], "link", request.get("vendor"))
        options = with_vendor(request["options"], vendor)
        uuid = request["uuid"]
        result = self.watch(module.run, uuid, request["name"], options)
        if not result:
            return {"halt": True}
        if result is True or str(result) == uuid:
            return {}
        return {"uuid": printable(str(result))}

    def trace(self, request):
        module, _ = self.module(request["module"], "tracer")
        arguments = ("in", "out", "name", "links", "index", "options")
        self.watch(module.run, *(request[name] for name in arguments))
        return {}

    def save(self, request):
        self.call_storage("save", request)
        return {}

    def get(self, request):
        found = self.call_storage("get", request)
        if isinstance(found, (str, bytes)) and found:
            found = decode(found)
        if not found:
            return {}
        if not isinstance(found, dict):
            raise TypeError(f"`get` returned an object of type {type(found).__name__}, not a dict")
        return {"vcon": found}

    def delete(self, request):
        return {"deleted": bool(self.call_storage("delete", request))}

    def call_storage(self, name, request):
        """Calls a function of a storage. One that it does not have returns None."""
        module, _ = self.module(request["module"], "storage")
        if "options" in request:
            options = request["options"]
        else:
            options = dict(getattr(module, "default_options", None) or {})
        function = getattr(module, name, None)
        return function and self.call(function, request["uuid"], options)

    def before_processing(self, request):
        uuid, context = request["uuid"], request["context"]
        self.before, self.raised = (uuid, context), None
        hook = self.hooks.get("before_processing")
        if hook is None or self.call(hook, uuid, request["chain"], context):
            return {}
        return {"halt": True}

    def after_processing(self, request):
        uuid, error = request["uuid"], request["error"]
        # The same object as before: hooks leave each other notes in it.
        is_same = self.before[0] == request["claimed"]
        context = self.before[1] if is_same else request["context"]
        error = self.exception(error)
        self.before, self.raised = (None, None), None
        hook = self.hooks.get("after_processing")
        if hook is not None:
            self.call(hook, uuid, request["chain"], context, error=error)
        return {}

    def after_link(self, request):
        hook = self.hooks.get("after_link")
        if hook is None:
            return {}
        name = request["module"]
        # A built-in link is never loaded here, even where the path has a module of its name.
        built_in = (ModuleType(name), request.get("vendor"))
        module, vendor = self.modules.get((name, "link"), built_in)
        options = with_vendor(request["options"], vendor)
        own_options = (options or {}).get("after_link", {})
        outcome = (request["status"], self.exception(request["error"]), request["parties"])
        self.call(hook, request["uuid"], request["link"], module, options, own_options, *outcome)
        return {}

    def exception(self, text):
        """Returns the exception that this text is about; None for no text."""
        if text is None:
            return None
        # The one that was raised, unless the daemon speaks of an error of its own.
        was_here = self.raised is not None and shown(self.raised) == text
        return self.raised if was_here else Exception(text)

    def module(self, name, kind, vendor=None):
        """Returns a module of this kind, and the vendor to add to its options.

        It is imported and checked when it is first needed.
        """
        found = self.modules.get((name, kind))
        if found is None:
            try:
                found = (self.imported(name, kind), None)
            except NotLoaded as error:
                if not (vendor and error.absent):
                    raise
                found = (self.imported(TRANSCRIBE, kind), vendor)
            self.modules[name, kind] = found
        return found

    def imported(self, name, kind="import"):
        # It may have been installed since the last attempt.
        importlib.invalidate_caches()
        try:
            module = self.call(importlib.import_module, name)
        except BaseException as error:
            why, absent = shown(error), is_absent(name, error)
            raise NotLoaded(f"could not import {name}: {why}", why, absent) from error
        fault = fault_of(module, kind)
        if fault:
            # The next attempt reads the file anew.
            sys.modules.pop(name, None)
            raise NotLoaded(f"{name} {fault}", f"{name} {fault}")
        return module

    def watch(self, function, *arguments):
        """Calls a link or tracer, and keeps what it raises for the hooks."""
        self.raised = None
        try:
            return self.call(function, *arguments)
        except BaseException as error:
            # Only if it is needed, because it keeps all that the module worked on in memory.
            if "after_processing" in self.hooks or "after_link" in self.hooks:
                self.raised = error
            raise

    def call(self, function, *arguments, **named):
        """Calls a function of a module, and runs the coroutine that it may return.

        If it has forked, the child comes back from it, too, and ends here.
        """
        try:
            result = function(*arguments, **named)
            if inspect.isawaitable(result):
                # Takes several megabytes, which most hosts do not need.
                import asyncio

                result = asyncio.run(completed(result))
        except BaseException as error:
            if self.streams.in_child:
                self.streams.leave_child(error)
            raise
        if self.streams.in_child:
            self.streams.leave_child()
        return result


REQUESTS = {
    "load": Host.load,
    "look": Host.look,
    "link": Host.link,
    "trace": Host.trace,
    "save": Host.save,
    "get": Host.get,
    "delete": Host.delete,
    "before": Host.before_processing,
    "after": Host.after_processing,
    "after_link": Host.after_link,
}


def high_copy(descriptor):
    """Returns a copy with a high number, which programs do not inherit."""
    for lowest in (1000, 200, 40):
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError:
            # Above the limit on open files.
            continue
    return os.dup(descriptor)


def is_closed(stream):
    try:
        return stream.closed
    except AttributeError:
        # Nothing, or something that a module has put in its place.
        return stream is None
    except ValueError:
        # detach() has taken its buffer.
        return True


async def completed(awaitable):
    return await awaitable


def fault_of(module, kind):
    """Returns why a module is not of this kind, or None."""
    required = REQUIRED[kind]
    if required and not callable(getattr(module, required, None)):
        return f"has no function `{required}`"
    if kind == "storage":
        for name in ("get", "delete"):
            function = getattr(module, name, None)
            if function is not None and not callable(function):
                return f"has a `{name}` that is no function"
        if not isinstance(getattr(module, "default_options", None), (dict, type(None))):
            return "has `default_options` that are no dict"
    return None


def is_absent(name, error):
    """Returns whether an import failed because the module or its package does not exist."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    return f"{name}.".startswith(f"{error.name}.")


def with_vendor(options, vendor):
    """Returns the options of an older link of this vendor in the form that TRANSCRIBE takes."""
    if vendor is None:
        return options
    options = options or {}
    if "vendor" in options or "vendor_options" in options:
        return {"vendor": vendor, **options}
    return {"vendor": vendor, "vendor_options": options}


def is_idle(hook, function):
    """Returns whether a hook does nothing, by its source, so that no vCon has to pay for calls."""
    try:
        (definition,) = ast.parse(inspect.getsource(function)).body
        first = (definition.args.posonlyargs + definition.args.args)[0].arg
        is_bare = not definition.decorator_list and not hasattr(function, "__wrapped__")
        steps = [ast.unparse(step) for step in definition.body if not is_filler(step)]
    # It is no plain function, or there is no source.
    except Exception:
        return False
    passes = steps in (["return True"], [f"return {first}"])
    # A `before_processing` that returns None does something: it skips every vCon.
    returns_none = steps in ([], ["return"], ["return None"]) and hook != "before_processing"
    return is_bare and (passes or returns_none)


def is_filler(step):
    """Returns whether a statement is `pass`, `...` or a docstring."""
    is_constant = isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant)
    return is_constant or isinstance(step, ast.Pass)


def is_transient(error):
    if isinstance(error, (NotLoaded, ConnectionError, TimeoutError, MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO:
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    if "HTTPError" in names:
        # Of requests and httpx, or of urllib, whose one is a URLError, too. In urllib3 and httpx it is also the
        # base of errors without an answer.
        status = getattr(getattr(error, "response", None), "status_code", None)
        status = status or getattr(error, "code", None)
        if isinstance(status, int):
            return status == 429 or 500 <= status <= 599
    return not names.isdisjoint(TRANSIENT)


def shown(error):
    """Returns the end of a traceback, in one line."""
    if isinstance(error, NotLoaded):
        text = str(error)
    else:
        # What a module raises may fail even to be shown.
        try:
            text = "".join(traceback.format_exception_only(type(error), error))
        except Exception:
            text = type(error).__name__
    return printable(" ".join(text.split()))[:LONGEST_ERROR]


def printable(text):
    """Replaces lone surrogates, which no JSON may hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


if __name__ == "__main__":
    main()
