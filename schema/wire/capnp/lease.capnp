@0xf2c91b6a04d7e583;
# Leases: what keeps blobs and snapshots from being collected while somebody works with them.
#
# What nothing refers to is collected, soon after it is so. An image refers to its manifest and, by labels, to all that
# leads from there; a container to its snapshot; a snapshot to its parent. What you make through a lease's namespace is
# held by the lease, with all that it refers to. What you make by hand through any other (an ingest, a snapshot) stands
# until you remove it.

using Common = import "common.capnp";
using Label = Common.Label;
using Namespace = import "namespace.capnp".Namespace;

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

interface Leases @0xc6b41d97f0a8e253 {
  create @0 (id :Text, labels :List(Label), expires :Common.Time) -> (lease :Lease) $Common.needs("write") $Common.audit("none");
  # The id is yours to choose; already_exists where it is taken. Without a time to end at it stays until it is removed.

  get @1 (id :Text) -> (lease :Lease) $Common.needs("read");
  list @2 (filters :List(Text)) -> (cursor :LeaseCursor) $Common.needs("read");
  # Fields: id, labels.<key>.

  remove @3 (id :Text) -> () $Common.needs("write") $Common.audit("none");
  # What it held stays until it is collected, unless something else keeps it.
}

interface LeaseCursor @0xd5720e8bc93f61a4 {
  next @0 (max :UInt16) -> (items :List(LeaseInfo), end :Bool) $Common.needs("read");
}

interface Lease @0xe1a8f7340b6dc952 {
  info @0 () -> (info :LeaseInfo) $Common.needs("read");

  namespace @1 () -> (namespace :Namespace) $Common.needs("none") $Common.audit("none");
  # The same namespace. What is made through it is held by the lease: blobs, snapshots, pulled and imported images. When
  # the lease is gone that fails with not_found, and when it has ended with failed_precondition.

  update @2 (labels :List(Label), expires :Common.Time, fields :List(Text)) -> (info :LeaseInfo) $Common.needs("write") $Common.audit("none");
  # Takes what is named: "labels", "labels.KEY", "expires"; without names all of them.

  add @3 (resource :Resource) -> () $Common.needs("write") $Common.audit("none");
  # It need not exist yet.

  drop @4 (resource :Resource) -> () $Common.needs("write") $Common.audit("none");
  # not_found where the lease doesn't hold it.

  resources @5 () -> (cursor :ResourceCursor) $Common.needs("read");
}

interface ResourceCursor @0x8b3cd4e5a2970f16 {
  next @0 (max :UInt16) -> (items :List(Resource), end :Bool) $Common.needs("read");
}
