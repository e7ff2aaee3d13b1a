@0xb5b11ee473215c6e;
# A namespace: images, containers, content and snapshots that see nothing of any other namespace.
#
# Leases and grants are here too, since they lead back to it; what they are is said in lease.capnp and grant.capnp.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";
using Label = Common.Label;
using Images = import "image.capnp".Images;
using Containers = import "container.capnp".Containers;
using Networks = import "container.capnp".Networks;
using Content = import "content.capnp".Content;
using Snapshots = import "snapshot.capnp".Snapshots;
using Events = import "event.capnp".Events;
using Jobs = import "job.capnp".Jobs;
using Explanation = import "gc.capnp".Explanation;
using LeaseInfo = import "lease.capnp".LeaseInfo;
using LeaseCursor = import "lease.capnp".LeaseCursor;
using Resource = import "lease.capnp".Resource;
using ResourceCursor = import "lease.capnp".ResourceCursor;
using Credentials = import "credential.capnp".Credentials;
using GrantInfo = import "grant.capnp".GrantInfo;
using GrantOptions = import "grant.capnp".GrantOptions;
using GrantCursor = import "grant.capnp".GrantCursor;

struct NamespaceInfo @0xb8686dc1dcff1f25 {
  name @0 :Text;
  labels @1 :List(Label);
  created @2 :Common.Time;
  updated @3 :Common.Time;
}

interface Namespace @0x90a3e332970f62d5 {
  info @0 () -> (info :NamespaceInfo) $Common.needs("read");

  with @1 (context :Common.Context) -> (namespace :Namespace) $Common.needs("none") $Common.audit("none");
  # The same namespace; all that is reached from there carries the context. What it leaves empty stays as this has it.

  images @2 () -> (images :Images) $Common.needs("none") $Common.audit("none");
  # What containers are made from (image.capnp).

  containers @3 () -> (containers :Containers) $Common.needs("none") $Common.audit("none");
  # And what runs (container.capnp).

  content @4 () -> (content :Content) $Common.needs("none") $Common.audit("none");
  # Blobs by digest (content.capnp).

  snapshots @5 (driver :Text) -> (snapshots :Snapshots) $Common.needs("none") $Common.audit("none");
  # File systems (snapshot.capnp), of one driver: "overlay", "native", "btrfs" or "erofs", as far as the host has it; an empty
  # name is the default, "overlay". invalid_argument names those that there are.

  events @6 () -> (events :Events) $Common.needs("none") $Common.audit("none");
  # What happens in it (event.capnp).

  jobs @7 () -> (jobs :Jobs) $Common.needs("none") $Common.audit("none");
  # What takes long and goes on without you (job.capnp).

  networks @8 () -> (networks :Networks) $Common.needs("none") $Common.audit("none");
  # What containers can be connected to (container.capnp).

  leases @9 () -> (leases :Leases) $Common.needs("none") $Common.audit("none");
  # What keeps things while somebody works with them (lease.capnp).

  explain @10 (type :Text, id :Text) -> (explanation :Explanation) $Common.needs("read");
  # What keeps something from being collected, or why it goes. `type`: "image", "container", "lease", "content", or "snapshots/"
  # and the driver's name; `id`: its name, id, digest or key. not_found where it isn't there. All records of the namespace are
  # read for it.

  update @11 (labels :List(Label), fields :List(Text)) -> (info :NamespaceInfo) $Common.needs("write") $Common.audit("none");
  # Takes from `labels` what is named: "labels", "labels.KEY"; where an entry is absent it is removed. Without names all of
  # them. A name never changes: invalid_argument. The answer is the namespace as it is then.

  grants @12 () -> (grants :Grants) $Common.needs("none") $Common.audit("none");
  # What was handed out of it (grant.capnp). `denied` where your own grant may not be passed on.

  credentials @13 () -> (credentials :Credentials) $Common.needs("none") $Common.audit("none");
  # What its pulls and pushes show to registries (credential.capnp).
}

interface Leases @0xc6b41d97f0a8e253 {
  # Those of the namespace (lease.capnp).

  create @0 (id :Text, labels :List(Label), expires :Common.Time) -> (lease :Lease) $Common.needs("write") $Common.audit("none");
  # The id is yours to choose, and not empty; already_exists where it is taken. Without a time to end at it stays until it is
  # removed.

  get @1 (id :Text) -> (lease :Lease) $Common.needs("read");
  # not_found where there is none.

  list @2 (filters :List(Text)) -> (cursor :LeaseCursor) $Common.needs("read");
  # Fields: id, labels.<key>.

  remove @3 (id :Text) -> () $Common.needs("write") $Common.audit("none");
  # not_found where there is none. What it held stays until it is collected, unless something else keeps it.
}

interface Lease @0xe1a8f7340b6dc952 {
  info @0 () -> (info :LeaseInfo) $Common.needs("read");

  namespace @1 () -> (namespace :Namespace) $Common.needs("none") $Common.audit("none");
  # The same namespace. What is made through it is held by the lease: blobs, snapshots, pulled and imported images. When
  # the lease is gone that fails with not_found, and when it has ended with failed_precondition.

  update @2 (labels :List(Label), expires :Common.Time, fields :List(Text)) -> (info :LeaseInfo) $Common.needs("write") $Common.audit("none");
  # Takes what is named: "labels", "labels.KEY", "expires"; without names all of them. An `expires` of 0 is no end.

  add @3 (resource :Resource) -> () $Common.needs("write") $Common.audit("none");
  # Holds it too. It need not exist yet.

  drop @4 (resource :Resource) -> () $Common.needs("write") $Common.audit("none");
  # not_found where the lease doesn't hold it.

  resources @5 () -> (cursor :ResourceCursor) $Common.needs("read");
  # What it holds itself, without what that refers to.
}

interface Grants @0xc1f19c227ac6c292 {
  # Those that come from the grant by which you have this object; of the operator all of the namespace (grant.capnp).

  create @0 (options :GrantOptions) -> (grant :Grant) $Common.needs("none") $Common.audit("give");
  # It stays until it is taken back, or ends by itself. What you haven't it hasn't either; `denied` where nothing would
  # be left, and where your own grant may not be passed on; invalid_argument for what is no facet, right, filter or id, and for
  # a time that has passed. Nobody holds it yet: `save`, `export` or `open` it.

  get @1 (id :Text) -> (grant :Grant) $Common.needs("none") $Common.audit("none");
  # not_found where there is none, it was taken back, or it doesn't come from yours.

  list @2 () -> (cursor :GrantCursor) $Common.needs("none") $Common.audit("none");
  # In the order of a tree: each before those that come from it.
}

interface Grant @0xd8e433398cf5e8f9 {
  info @0 () -> (info :GrantInfo) $Common.needs("none") $Common.audit("none");

  revoke @1 () -> () $Common.needs("none") $Common.audit("take");
  # Takes it back, with all that come from it. When this returns no call of theirs is under way, no later one succeeds, and
  # that is on disk.

  save @2 (sealed :Bool, sealedTo :UInt32) -> (token :Text) $Common.needs("none") $Common.audit("give");
  # Makes a token: whoever has it gets the grant by `Gate.restore`; where it is sealed, only that user. It is told here and
  # never again. An older token of this grant is worth nothing from then on. Where not `sealed`, `sealedTo` doesn't count.

  open @3 () -> (namespace :Namespace) $Common.needs("none") $Common.audit("use");
  # The namespace, as its holder has it.

  explain @4 () -> (methods :List(Text)) $Common.needs("none") $Common.audit("none");
  # Every method that its holder can call, as "Container.logs"; but for those that need nothing, which give nothing by
  # themselves.

  export @5 (directory :Text) -> () $Common.needs("host") $Common.audit("give");
  # Makes "cofferdam.sock" in a directory of the daemon's host: whoever can connect to it holds the grant, whichever user it
  # is: the directory's mode keeps others out. One that isn't there is made, for root alone; one that is there stays as it is.
  # The socket is there again before the daemon serves anybody when it is started anew: in the same directory, or, where a
  # link is on the way to that by then, nowhere. already_exists where the grant has a socket; what lies in its place is left
  # alone, and refused.

  unexport @6 () -> () $Common.needs("host") $Common.audit("take");
  # Removes the socket, and ends the connections that came by it.
}
