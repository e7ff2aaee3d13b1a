"""What the holder of two grants does, and what is refused to him.

    COFFERDAM_DEPLOY=TOKEN COFFERDAM_LOGS=TOKEN holder.py SOCKET IMAGE

By the first (facet deploy, his own containers, one image, 64 MiB of memory) he runs a container of the image, follows its
log to the end, gets its exit code and reads a file of it, and talks with another over streams. By the second (facet logs, the container `web`) he follows his sibling's log until
the grant is taken back. What he tries beside that is told with the code of its refusal.
"""

import io
import os
import signal
import sys
import tarfile

import cofferdam
from cofferdam import answer

SCRIPT = "echo hello; echo oops >&2; echo bye; exit 7"


def say(*words):
    print(*words, flush=True)


def params(image, id, **options):
    """Of a container; `options` are those of `ContainerOptions`."""
    return {"id": id, "image": image, "options": {"args": ["sh", "-c", SCRIPT], **options}}


async def run(namespace, image):
    """Runs a container to its end, with all that can be sent at once sent at once."""
    containers = namespace.containers().containers
    made = containers.create(params=params(image, "mine")).container
    task = made.createTask(log=True).task
    await answer(task.start())
    lines = {"stdout": [], "stderr": []}
    records = cofferdam.Records(lambda record: lines[str(record.stream)].append(bytes(record.bytes)))
    await answer(made.logs(follow=True, sink=records))
    for stream, pieces in lines.items():
        for line in b"".join(pieces).decode().splitlines():
            say("log", stream, line)
    exit = (await answer(task.wait())).exit
    say("exit", exit.status)
    async for info in cofferdam.items(containers.list(filters=["id==mine", "id==web"])):
        say("there is", info.id, info.task.status)
    copied = cofferdam.Bytes()
    await answer(made.copyOut(path="/etc/passwd", sink=copied))
    with tarfile.open(fileobj=io.BytesIO(copied.all)) as archive:
        say("copied", *archive.getnames())
    return made


async def talk(namespace, image):
    """Writes what a process reads, and reads what it writes: what a client does that passes no descriptors."""
    heard = cofferdam.Bytes()
    wanted = params(image, "talk", args=["cat"])
    made = namespace.containers().containers.create(params={**wanted, "removeOnExit": True}).container
    task = made.createTask(stdio={"stdin": {"stream": None}, "stdout": {"stream": heard}}).task
    await answer(task.start())
    await cofferdam.write(task.stdin().sink, b"ping" * 100_000)
    await heard.ended.wait()
    say("heard", len(heard.all), heard.all[:4].decode())
    await answer(made.removed())


async def refused(what, *promises):
    """Tells how the last of some calls is refused; those before it lead to it."""
    try:
        await answer(promises[-1])
        say("ALLOWED", what)
    except cofferdam.Error as error:
        say(error.code, what)


async def beyond_deploy(client, namespace, image, mine):
    """What a grant to deploy isn't for."""
    await refused("another namespace", client.namespaces.get("elsewhere"))
    await refused("a new namespace", client.namespaces.create("mine"))
    await refused("the daemon's state", client.root.system())
    await refused("the collector", client.root.collector())
    await refused("grants", namespace.grants().grants.list())
    await refused("events", namespace.events().events.subscribe(after=0))
    await refused("content", namespace.content().content.list())
    await refused("snapshots", namespace.snapshots().snapshots.list())
    await refused("leases", namespace.leases().leases.list())
    await refused("jobs", namespace.jobs().jobs.list())

    images = namespace.images().images
    await refused("another image", images.get("test/second:latest"))
    await refused("a pull", images.pull(options={"reference": "test/busybox:latest"}))
    await refused("an import", getattr(images, "import")(options={"name": "test/mine:latest", "format": "rootfs"}))
    await refused("an image's end", images.remove("test/busybox:latest"))

    containers = namespace.containers().containers
    sibling = containers.get("web").container
    await refused("a sibling's log", sibling.logs(follow=False, sink=cofferdam.Records(lambda record: None)))
    await refused("a process in a sibling", sibling.task().task.exec(options={"args": ["id"]}))

    async def container(what, **options):
        await refused(what, containers.create(params=params(image, "more", **options)))

    await container("a mount of the host's", mounts=[{"target": "/mnt", "hostPath": "/etc", "readOnly": True}])
    await container("the host's network", networking={"host": None})
    await container("a capability", capAdd=["SYS_ADMIN"])
    await container("more memory", memory=65 << 20)
    spec = containers.createFromSpec(params={"id": "more", "image": image}, spec=b'{"ociVersion":"1.0.2"}')
    await refused("a spec", spec)
    again = mine.task().task
    await answer(again.delete())
    await refused("a file of the host's", mine.createTask(stdio={"stdout": {"file": "/etc/motd"}}))
    await refused("an image of it", mine.commit(options={"name": "test/mine:latest"}))


async def beyond_logs(namespace):
    """What a grant of a log isn't for."""
    containers = namespace.containers().containers
    sibling = containers.get("web").container
    await refused("another container", containers.get("db"))
    await refused("what it is", sibling.info())
    await refused("its task", sibling.task())
    await refused("its end", sibling.task().task.kill(signal=int(signal.SIGKILL), all=True))
    await refused("a process in it", sibling.task().task.exec(options={"args": ["id"]}))
    await refused("its files", sibling.copyOut(path="/etc/passwd"))
    await refused("its removal", sibling.remove(force=True))
    await refused("a container", containers.create(params={"id": "more"}))


async def follow(namespace):
    """Follows the sibling's log until that is refused."""
    heard = []

    def take(record):
        if not heard:
            say("following", bytes(record.bytes).decode().split("\n")[0])
        heard.append(record.time)

    sibling = namespace.containers().containers.get("web").container
    try:
        await answer(sibling.logs(follow=True, sink=cofferdam.Records(take)))
        say("the log has ended")
    except cofferdam.Error as error:
        say(error.code, "the log that is followed")
    await refused("the log once more", sibling.logs(follow=False, sink=cofferdam.Records(take)))


async def main():
    socket, reference = sys.argv[1:]
    client = await cofferdam.restore(socket, os.environ["COFFERDAM_DEPLOY"])
    say("holds", *(await client.grant()).options.facets)
    namespace = client.namespace()
    image = namespace.images().images.get(reference).image
    mine = await run(namespace, image)
    await talk(namespace, image)
    await beyond_deploy(client, namespace, image, mine)
    await answer(mine.remove(force=False))

    reader = await cofferdam.restore(socket, os.environ["COFFERDAM_LOGS"])
    say("holds", *(await reader.grant()).options.facets)
    await beyond_logs(reader.namespace())
    await follow(reader.namespace())


if __name__ == "__main__":
    cofferdam.run(main())
