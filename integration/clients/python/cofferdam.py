"""A client of Cofferdam in Python: the schema over pycapnp, and nothing else of the daemon's.

    import cofferdam

    async def main():
        client = await cofferdam.connect("/run/cofferdam/cofferd.sock")
        shop = client.namespace("shop")
        async for container in cofferdam.items(shop.containers().containers.list()):
            print(container.id)

    cofferdam.run(main())

The objects are pycapnp's own, and their methods those of schema/wire/capnp/*.capnp. Three things are added here: the
files are loaded, an exception of Cap'n Proto becomes an `Error` with the daemon's code (`answer`), and a list is
read block by block (`items`).

A method that is a word of Python's is called by `getattr(namespace, "with")(...)`, and a parameter of the name `name`
is given by its place: pycapnp has one of its own.
"""

import asyncio
import os
import pathlib
import urllib.parse

import capnp

SCHEMA = pathlib.Path(
    os.environ.get("COFFERDAM_SCHEMA")
    or pathlib.Path(__file__).resolve().parents[3] / "schema" / "wire" / "capnp"
)
# Where pycapnp keeps the files that every schema may name, such as /capnp/stream.capnp.
_STANDARD = str(pathlib.Path(capnp.__file__).resolve().parents[1])


def load(name):
    """A file of the schema as a module."""
    return capnp.load(str(SCHEMA / f"{name}.capnp"), imports=[_STANDARD])


gate = load("gate")
common = load("common")
container = load("container")

VERSION = 1
"""The version of the API that this client was written for."""


class Error(Exception):
    """What the daemon says went wrong. Act on the code, show the sentence (common.capnp)."""

    def __init__(self, code, kind="", id="", message=""):
        super().__init__(f"{code}: {kind} {id}: {message}")
        self.code, self.kind, self.id, self.message = code, kind, id, message

    @classmethod
    def of(cls, exception):
        """Reads `cofferdam:<code> <kind>/<id>: <sentence>`; what has another form came from a library."""
        reason = exception.description
        while reason.startswith("remote exception: "):
            reason = reason.removeprefix("remote exception: ")
        head, _, message = reason.partition(": ")
        code, _, about = head.partition(" ")
        if code.startswith("cofferdam:"):
            kind, _, id = about.partition("/")
            return cls(code.removeprefix("cofferdam:"), kind, urllib.parse.unquote(id), message)
        code = {"DISCONNECTED": "unavailable", "UNIMPLEMENTED": "unimplemented"}.get(exception.type, "internal")
        return cls(code, "rpc", "", reason)


async def answer(promise):
    """Waits for the answer of a call."""
    try:
        return await promise
    except capnp.KjException as exception:
        raise Error.of(exception) from None


async def items(listed):
    """Goes through a list: what a method `list` answered, or is yet to."""
    cursor, end = listed.cursor, False
    while not end:
        block = await answer(cursor.next(max=100))
        for item in block.items:
            yield item
        end = block.end


class Client:
    """A connection, and what the daemon or a token grants on it."""

    def __init__(self, peer, entered):
        # The answer to `enter` or `restore` has yet to come: what is asked meanwhile goes out behind it, and what is
        # wrong with it comes out of the first call that is awaited.
        self._peer, self._entered = peer, entered
        self.root = entered.root
        self.namespaces = self.root.namespaces().namespaces

    def namespace(self, name=""):
        """A namespace; by no name the one of the grant."""
        return self.namespaces.get(name).namespace

    async def grant(self):
        """What the connection was granted; once. None where that is everything."""
        entered = await answer(self._entered)
        return entered.grant if entered._has("grant") else None


async def _gate(path):
    stream = await capnp.AsyncIoStream.create_unix_connection(path=str(path))
    peer = capnp.TwoPartyClient(stream)
    return peer, peer.bootstrap().cast_as(gate.Gate)


async def connect(path):
    """Takes what the daemon's policy grants on this socket."""
    peer, entry = await _gate(path)
    return Client(peer, entry.enter())


async def restore(path, token):
    """Takes what the grant of a token gives, on any socket of the daemon."""
    peer, entry = await _gate(path)
    return Client(peer, entry.restore(token=token))


class Records(container.LogSink.Server):
    """Takes the records of a log, and gives each to a function."""

    def __init__(self, take):
        self._take = take

    async def write(self, records, **_):
        for record in records:
            self._take(record)

    async def end(self, **_):
        pass


class Bytes(common.ByteStream.Server):
    """Takes a stream of bytes that the daemon writes. There is more to come until `ended` is set."""

    def __init__(self):
        self.all, self.ended = b"", asyncio.Event()

    async def write(self, chunk, **_):
        self.all += bytes(chunk)

    async def end(self, **_):
        self.ended.set()


CHUNK = 256 << 10
"""The most that a stream takes at once."""


async def write(sink, data):
    """Writes all of it into a stream of the daemon's, and ends that. Returns when it is where it belongs."""
    for at in range(0, len(data), CHUNK):
        await answer(sink.write(chunk=data[at : at + CHUNK]))
    await answer(sink.end())


def run(main):
    """Runs a coroutine on asyncio with Cap'n Proto's loop in it."""
    return asyncio.run(capnp.run(main))
