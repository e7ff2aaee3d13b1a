@0xb3e7f19a60c5d284;
# Events: what happened in a namespace, in order, kept in a journal: the last 64 MiB or seven days of them.
#
# The daemon's own, with the fields of their payloads:
#   /namespaces/create, update      name, labels              /namespaces/delete    name
#   /images/create, update          name, labels              /images/delete        name
#   /content/delete, damaged        digest
#   /snapshot/prepare               key, parent, driver
#   /snapshot/commit                key, name, driver; of a layer that is unpacked `key` is its name too
#   /snapshot/remove, damaged, repaired   key, driver
#   /containers/create              id, image, runtime.name, runtime.options.type_url if there are options
#   /containers/update              id, image, labels, snapshot_key
#   /containers/rename              id, from                  /containers/delete    id
#   /tasks/create                   container_id, io.terminal, checkpoint (the image that it is restored from, or null)
#                   Neither bundle, root file system nor where its streams lead are told: they are paths of the host's. The pid is
#                   that of the start.
#   /tasks/start                    container_id, pid
#   /tasks/exec-added               container_id, exec_id     /tasks/exec-started   container_id, exec_id, pid
#   /tasks/exit     container_id, id (of the process: the container's for the first one, else the exec's), pid, exit_status,
#                   exited_at (RFC 3339), reason
#   /tasks/delete   the same, of the first process: each /tasks/create is followed by one
#   /tasks/oom                      container_id, count
#   /tasks/paused, resumed          container_id              /tasks/checkpointed   container_id, checkpoint
# More topics and fields may come.
#
# Starts, ends, pauses and resumes are told once each, whoever is killed in between: what a daemon that dies had still to tell, the
# next one does. Of a pause and a resume that both came in between nothing is told, and /tasks/exec-added of a process that was
# made in the daemon's last moment may be missing; its start and its end are not.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct Event @0xc1a05e8bd37f9462 {
  sequence @0 :UInt64;
  # Grows with every event of the daemon, in whatever namespace; a number is used once. The order of events is that of their
  # numbers, whatever their times say.
  timestamp @1 :Common.Time;
  namespace @2 :Text;
  topic @3 :Text;
  # Such as /tasks/exit.
  payload @4 :Text;
  # A JSON object.
}

interface Events @0xf6b82d4ea91c7053 {
  subscribe @0 (after :UInt64, filters :List(Text)) -> (cursor :EventCursor) $Common.needs("read");
  # Everything behind the sequence number `after`, first from the journal, then as it happens; 0 is all that the journal has. The
  # largest number (0xffffffffffffffff) means "from now on". Fields: namespace, topic, event.<field>, where <field> may have dots
  # for objects within: event.runtime.name. To go on after a lost connection, subscribe behind the last number that you
  # handled.

  last @1 () -> (sequence :UInt64) $Common.needs("read");
  # The number of the last event, of any namespace.

  publish @2 (topic :Text, payload :Text) -> (sequence :UInt64) $Common.needs("write") $Common.audit("none");
  # A topic is words with a slash before each. The payload must be a JSON object of at most 16 KiB. Durable when it returns. The
  # topics of the daemon's own subsystems (/containers, /content, /images, /namespaces, /snapshot, /tasks) are `denied`.

  forward @3 (event :Event) -> (sequence :UInt64) $Common.needs("root") $Common.audit("use");
  # Takes a foreign event in, with its own time, namespace and topic. Its `sequence` doesn't count: it gets one of ours.
}

interface EventCursor @0x9f71c3d5b2e84a06 {
  next @0 (max :UInt16) -> (items :List(Event), gapFrom :UInt64, gapTo :UInt64) $Common.needs("read");
  # Waits until there is at least one, and gives at most `max` (1 to 100). One call at a time: another is
  # failed_precondition. Where the reader was too slow and events were dropped for it, an answer says from which sequence
  # number to which (both included), and has no events: those behind the gap come with the next call. `gapTo` is 0 otherwise.
}
