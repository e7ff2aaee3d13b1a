@0xb3e7f19a60c5d284;
# Events: what happened in a namespace, in order, kept in a journal.

using Common = import "common.capnp";

struct Event @0xc1a05e8bd37f9462 {
  sequence @0 :UInt64;
  # Grows with every event of the daemon; a number is used once.
  timestamp @1 :Common.Time;
  namespace @2 :Text;
  topic @3 :Text;
  # Such as /tasks/exit.
  payload @4 :Text;
  # A JSON object.
}

interface Events @0xf6b82d4ea91c7053 {
  subscribe @0 (after :UInt64, filters :List(Text)) -> (cursor :EventCursor) $Common.needs("read");
  # Everything behind the sequence number `after`, first from the journal, then as it happens. The largest number
  # (0xffffffffffffffff) means "from now on". Fields: namespace, topic, event.<field>.

  last @1 () -> (sequence :UInt64) $Common.needs("read");
  publish @2 (topic :Text, payload :Text) -> (sequence :UInt64) $Common.needs("write") $Common.audit("none");
  # The payload must be a JSON object. Durable when it returns. The topics of the daemon's own subsystems (/containers,
  # /content, /images, /namespaces, /snapshot, /tasks) are `denied`.

  forward @3 (event :Event) -> (sequence :UInt64) $Common.needs("root") $Common.audit("use");
  # Takes a foreign event in, with its own time, namespace and topic.
}

interface EventCursor @0x9f71c3d5b2e84a06 {
  next @0 (max :UInt16) -> (items :List(Event), gapFrom :UInt64, gapTo :UInt64) $Common.needs("read");
  # Waits until there is at least one. Where the reader was too slow and events were dropped for it, an answer says from
  # which sequence number to which (both included), and has no events: those behind the gap come with the next call.
}
