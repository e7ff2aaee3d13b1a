@0xd8a5c1f03b9e6274;
# The collector: what nothing keeps goes.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct Collected @0xa31f86d2c07be459 {
  namespace @0 :Text;
  type @1 :Text;
  # "content", or "snapshots/" and the driver's name.
  id @2 :Text;
  # A digest, or a key.
  bytes @3 :UInt64;
  # What goes from disk with it; 0 where others have the same bytes, and of a snapshot that isn't committed.
}

struct ByteOwner @0xc9052e8db71af643 {
  namespace @0 :Text;
  type @1 :Text;
  # "image", "container" (with its log), "lease", "hand" (all that was made by hand), "label" (containerd.io/gc.root), "unreadable" (its
  # record can't be read), or "nothing": what the next collection removes.
  id @2 :Text;
  # Its name, where it has one.
  alone @3 :UInt64;
  # Bytes that nobody else keeps.
  shared @4 :UInt64;
  # Bytes that others keep too.
}

struct ByteArea @0xdb7f40c2951e68a3 {
  name @0 :Text;
  # "records", "events", "audit", "logs" (of containers that are gone), "ingests", "checkpoints", "trash", "unnamed" (in the making, or made
  # ahead), "other" (the directories that hold all this).
  bytes @1 :UInt64;
}

struct DiskUsage @0x8ea3d91b60f5c742 {
  total @0 :UInt64;
  # All bytes of all owners alone, the shared ones, and all areas: what lies below the root.
  shared @1 :UInt64;
  # What several owners keep, counted once.
  areas @2 :List(ByteArea);
}

struct CollectReport @0xf7249eb0531dac86 {
  blobs @0 :UInt64;
  snapshots @1 :UInt64;
  leases @2 :UInt64;
  # That had ended.
  bytes @3 :UInt64;
  mark @4 :UInt64;
  # Nanoseconds that it took to find out.
  sweep @5 :UInt64;
  # And to remove it.
  longest @6 :UInt64;
  # The longest of these that writers waited at once.
  unreadable @7 :List(Text);
  # Records that can't be read, with their namespaces and why; the first 1,000. Where one of them may refer to something, all stays
  # in its namespace; the others are collected as ever.
}

interface Collector @0x8c60d7e3f41b925a {
  collect @0 (rehearse :Bool) -> (report :CollectReport, cursor :CollectedCursor) $Common.needs("root") $Common.audit("use");
  # Collects now, whatever the schedule says. The answer comes when the bytes are gone, too, but for those of snapshots, which
  # are being deleted by then. With `rehearse` it says what would go now, and removes nothing. The cursor lists the first
  # 10,000 things; the figures count all.

  usage @1 () -> (usage :DiskUsage, cursor :ByteOwnerCursor) $Common.needs("root") $Common.audit("none");
  # Whose the bytes below the root are, as they lie on disk. All of it is looked at: it takes as long as du(1).
}

interface ByteOwnerCursor @0xfa1c6b058e92d437 {
  next @0 (max :UInt16) -> (items :List(ByteOwner), end :Bool) $Common.needs("root") $Common.audit("none");
}

interface CollectedCursor @0xb95ef2186a70cd34 {
  next @0 (max :UInt16) -> (items :List(Collected), end :Bool) $Common.needs("root") $Common.audit("none");
}

struct ReferenceStep @0xe4d08b7196f3ac25 {
  type @0 :Text;
  # "image", "container", "lease", "hand" (it was made by hand), "label" (containerd.io/gc.root), "unreadable" (its record can't be
  # read), and behind that one of these
  # "content", or "snapshots/" and the driver's name.
  id @1 :Text;
  by @2 :Text;
  # How the one before it leads here.
}

struct Explanation @0x97c3b5fa20e8d461 {
  stays @0 :Bool;
  # Whether the next collection leaves it.
  why @1 :Text;
  # In a sentence.
  chain @2 :List(ReferenceStep);
  # The shortest way to it from what keeps itself. Empty where it goes, and for what keeps itself.
  blobs @3 :UInt64;
  # What it keeps in its turn, itself included.
  snapshots @4 :UInt64;
  bytes @5 :UInt64;
}
