@0xf2c91b6a04d7e583;
# Leases: what keeps blobs and snapshots from being collected while somebody works with them.
#
# What nothing refers to is collected, soon after it is so. An image refers to its manifest and, by labels, to all that
# leads from there; a container to its snapshot; a snapshot to its parent. What you make through a lease's namespace is
# held by the lease, with all that it refers to. What you make by hand through any other (an ingest, a snapshot) stands
# until you remove it.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";
using Label = Common.Label;

struct LeaseInfo @0x9d0f5c2e81b7a364 {
  id @0 :Text;
  labels @1 :List(Label);
  # "containerd.io/gc.expire" with a time (RFC 3339, UTC) ends it like `expires`, at the earlier of the two.
  # "containerd.io/gc.flat", whatever its value: it holds its resources alone, and nothing that they refer to.
  created @2 :Common.Time;
  updated @3 :Common.Time;
  expires @4 :Common.Time;
}

struct Resource @0xb8e3a60d4c71f925 {
  type @0 :Text;
  # "content", or "snapshots/" and the driver's name.
  id @1 :Text;
  # A digest, or a key.
}

interface LeaseCursor @0xd5720e8bc93f61a4 {
  next @0 (max :UInt16) -> (items :List(LeaseInfo), end :Bool) $Common.needs("read");
}

interface ResourceCursor @0x8b3cd4e5a2970f16 {
  next @0 (max :UInt16) -> (items :List(Resource), end :Bool) $Common.needs("read");
}
