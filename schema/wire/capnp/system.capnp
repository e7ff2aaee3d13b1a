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
  status @0 () -> (status :SystemStatus) $Common.needs("root");
  crash @1 (actor :Text) -> () $Common.needs("root");
  # For tests and drills: panics that actor. It comes back from its state on disk.
}
