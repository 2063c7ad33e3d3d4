"""Prints, in every way there is, what might be taken for an answer."""

import os
import subprocess
import sys

from lib.calls import record


def run(*arguments, **named):
    record(__name__, "run", arguments, named)
    print('{"halt": true}')
    print('{"error": "said by a link"}', file=sys.stderr)
    os.write(1, b'{"halt": true}\n')
    if (arguments[2] or {}).get("program"):
        subprocess.run(["echo", '{"halt": true}'], check=True)
    return True
