@0xcf40b7e2935d8a16;
# The daemon itself.

using Common = import "common.capnp";

struct ActorStatus @0xb05d3e9c7af18246 {
  name @0 :Text;
  health @1 :Text;
  # up, starting, down, failed, stopped. Metadata that runs and can't write is down.
  why @2 :Text;
  restarts @3 :UInt32;
  waiting @4 :UInt32;
  # Messages in front of it.
}

struct SystemStatus @0xfa8c61d04be72953 {
  state @0 :Text;
  # ready, or degraded where an actor is not up.
  actors @1 :List(ActorStatus);
  version @2 :Text;
  started @3 :Common.Time;
  pid @4 :UInt32;
  connections @5 :UInt32;
  root @6 :Text;
  stateDir @7 :Text;
  cgroups @8 :Text;
  # v1, v2 or hybrid.
}

interface System @0xae92f7d5063c1b48 {
  status @0 () -> (status :SystemStatus) $Common.needs("root") $Common.audit("none");
  crash @1 (actor :Text) -> () $Common.needs("root") $Common.audit("use");
  # For tests and drills: panics that actor. It comes back from its state on disk.

  shims @2 () -> (cursor :ShimCursor) $Common.needs("root") $Common.audit("none");
  # Those that have a task on record.

  shim @3 (id :Text) -> (state :ShimState) $Common.needs("root") $Common.audit("none");
  # What a shim says of itself. unavailable where it doesn't answer, unimplemented where it is too old.

  check @4 (repair :Bool) -> (cursor :FindingCursor) $Common.needs("root") $Common.audit("use");
  # Compares the records with each other and with the disk, both ways, beside ordinary work. With `repair`: what no record
  # names is removed, indices are made anew, and a record that has lost its bytes is dropped where nothing lies on it.
  # It goes on as its cursor is asked.
}

interface FindingCursor @0xd1846e0a57c93bf2 {
  next @0 (max :UInt16) -> (items :List(Finding), end :Bool) $Common.needs("root") $Common.audit("none");
  # One at a time. Behind the last finding: none, and `end`.
}

struct Finding @0xe93c50b7a218d64f {
  fault @0 :Text;
  # One of the names in docs/check.md; more may come.
  id @1 :Text;
  # Kind and name, as blob/sha256:...
  message @2 :Text;
  repaired @3 :Bool;
}

interface ShimCursor @0xc27e80d5f6a1943b {
  next @0 (max :UInt16) -> (items :List(ShimInfo), end :Bool) $Common.needs("root") $Common.audit("none");
}

struct ShimInfo @0x99b7d40c6e52f81a {
  id @0 :Text;
  namespace @1 :Text;
  state @2 :Text;
  # there, looking (it is being looked for), mute (it doesn't answer), lost (it is gone; what it knew is on record).
  containers @3 :List(Text);
  group @4 :Text;
}

struct ShimState @0xee5d03a87cb1f692 {
  info @0 :ShimInfo;
  version @1 :UInt32;
  # Of the protocol that it speaks.
  pid @2 :UInt32;
  started @3 :Common.Time;
  descriptors @4 :UInt32;
  resident @5 :UInt64;
  # Bytes.
  proportional @6 :UInt64;
  # Bytes, with what it shares with others in parts.
  connections @7 :UInt32;
  containers @8 :List(ShimContainer);
}

struct ShimContainer @0xa7206fd93b8ec451 {
  namespace @0 :Text;
  id @1 :Text;
  driver @2 :Text;
  paused @3 :Bool;
  processes @4 :List(ShimProcess);
}

struct ShimProcess @0xcb94e17a205df386 {
  id @0 :Text;
  # Empty for the first process.
  pid @1 :UInt32;
  created @2 :Common.Time;
  started @3 :Common.Time;
  exited @4 :Common.Time;
  status @5 :UInt32;
  signal @6 :UInt32;
  reason @7 :Text;
  outputEnd @8 :Common.Time;
  # When the last of its output was where it belongs.
  oomed @9 :Common.Time;
  ooms @10 :UInt64;
}
