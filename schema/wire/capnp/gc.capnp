@0xd8a5c1f03b9e6274;
# The collector: what nothing keeps goes.

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
}

interface Collector @0x8c60d7e3f41b925a {
  collect @0 (rehearse :Bool) -> (report :CollectReport, cursor :CollectedCursor) $Common.needs("root");
  # Collects now, whatever the schedule says. The answer comes when the bytes are gone, too, but for those of snapshots, which
  # are being deleted by then. With `rehearse` it says what would go now, and removes nothing. The cursor lists the first
  # 10,000 things; the figures count all.
}

interface CollectedCursor @0xb95ef2186a70cd34 {
  next @0 (max :UInt16) -> (items :List(Collected), end :Bool) $Common.needs("root");
}

struct ReferenceStep @0xe4d08b7196f3ac25 {
  type @0 :Text;
  # "image", "container", "lease", "hand" (it was made by hand), "label" (containerd.io/gc.root), and behind that one of these
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
