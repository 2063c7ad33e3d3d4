"""The deployment's hooks around a chain."""

from lib import vcons
from lib.calls import record


def before_processing(*arguments, **named):
    record(__name__, "before_processing", arguments, named)
    subject = vcons.load(arguments[0]).get("subject")
    if subject == "before raises":
        raise RuntimeError("no beginning")
    # For the hook at the end.
    arguments[2]["seen before"] = arguments[0]
    return subject != "skipped"


def after_processing(*arguments, **named):
    record(__name__, "after_processing", arguments, named)
    if vcons.load(arguments[0]).get("subject") == "after raises":
        raise RuntimeError("no end")
