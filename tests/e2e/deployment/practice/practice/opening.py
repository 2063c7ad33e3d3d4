"""Something to import when a process begins: records which modules of links and storages are there already."""

import sys

from lib.calls import record

begun = [name for name in sys.modules if name.startswith(("links.", "storage.", "tracers."))]
record(__name__, "import", sorted(begun))
