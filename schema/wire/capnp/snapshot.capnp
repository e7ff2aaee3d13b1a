@0x97c5e8a1d06f3b24;
# Snapshots: file system states, each on top of a committed parent.

using Common = import "common.capnp";
using Label = Common.Label;

struct SnapshotInfo @0xae39d1f76c50b842 {
  key @0 :Text;
  parent @1 :Text;
  kind @2 :Kind;
  labels @3 :List(Label);
  created @4 :Common.Time;
  updated @5 :Common.Time;
  driver @6 :Text;

  enum Kind @0xc4f08b2e951d7a63 {
    view @0;
    # Read-only, uncommitted.
    active @1;
    # Writable.
    committed @2;
    # Immutable; only these can be parents.
  }
}

interface Snapshots @0xd83a6e0f4c17b925 {
  list @0 (filters :List(Text)) -> (cursor :SnapshotCursor) $Common.needs("read");
  # Fields: key, parent, kind, labels.<key>.

  get @1 (key :Text) -> (snapshot :Snapshot) $Common.needs("read");
}

interface SnapshotCursor @0xe95b270ca4d6f318 {
  next @0 (max :UInt16) -> (items :List(SnapshotInfo), end :Bool) $Common.needs("read");
}

interface Snapshot @0x8d2fc6b7e0a93514 {
  info @0 () -> (info :SnapshotInfo) $Common.needs("read");
  usage @1 () -> (size :UInt64, inodes :UInt64) $Common.needs("read");
  # Of this layer alone.

  remove @2 () -> () $Common.needs("write");
  # failed_precondition while another snapshot has it as its parent, or a container uses it.
}
