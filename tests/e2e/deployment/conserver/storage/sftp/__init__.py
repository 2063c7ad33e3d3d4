"""vCons as files of a server that is reached by SSH."""

import json

import paramiko

from lib import vcons
from lib.calls import record

sessions = {}


def session(options):
    """A session with the server, kept as long as it lives."""
    address = (options["host"], options["port"], options["user"])
    client = sessions.get(address)
    transport = client and client.get_transport()
    if not (transport and transport.is_active()):
        client = paramiko.SSHClient()
        client.load_host_keys(options["known_hosts"])
        client.connect(
            *address, key_filename=options["key"], look_for_keys=False, allow_agent=False, timeout=5
        )
        sessions[address] = client
    return client.open_sftp()


def path_of(uuid, options):
    return f"{options['folder']}/{uuid}.json"


def save(*arguments, **named):
    uuid, options = arguments
    vcon = vcons.load(uuid)
    record(__name__, "save", arguments, named, found=vcon is not None)
    path = path_of(uuid, options)
    with session(options) as server:
        with server.open(path + ".new", "w") as file:
            file.write(json.dumps(vcon))
        server.posix_rename(path + ".new", path)


def get(*arguments, **named):
    record(__name__, "get", arguments, named)
    uuid, options = arguments
    with session(options) as server:
        try:
            with server.open(path_of(uuid, options)) as file:
                return json.load(file)
        except FileNotFoundError:
            return None


def delete(*arguments, **named):
    record(__name__, "delete", arguments, named)
    uuid, options = arguments
    with session(options) as server:
        try:
            server.remove(path_of(uuid, options))
            return True
        except FileNotFoundError:
            return False
