"""The deployment's hook after each link."""

from lib import vcons
from lib.calls import record


def after_link(*arguments, **named):
    record(__name__, "after_link", arguments, named)
    if vcons.load(arguments[0]).get("subject") == "after link raises":
        raise RuntimeError("no matter")
