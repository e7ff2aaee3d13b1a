@0xb5b11ee473215c6e;
# A namespace: images, containers, content and snapshots that see nothing of any other namespace.

using Common = import "common.capnp";
using Label = Common.Label;
using Images = import "image.capnp".Images;
using Containers = import "container.capnp".Containers;
using Networks = import "container.capnp".Networks;
using Content = import "content.capnp".Content;
using Snapshots = import "snapshot.capnp".Snapshots;
using Events = import "event.capnp".Events;
using Jobs = import "job.capnp".Jobs;
using Leases = import "lease.capnp".Leases;
using Explanation = import "gc.capnp".Explanation;
using Grants = import "grant.capnp".Grants;

struct NamespaceInfo @0xb8686dc1dcff1f25 {
  name @0 :Text;
  labels @1 :List(Label);
  created @2 :Common.Time;
  updated @3 :Common.Time;
}

interface Namespace @0x90a3e332970f62d5 {
  info @0 () -> (info :NamespaceInfo) $Common.needs("read");

  with @1 (context :Common.Context) -> (namespace :Namespace) $Common.needs("none") $Common.audit("none");
  # The same namespace, whose descendants carry the context.

  images @2 () -> (images :Images) $Common.needs("none") $Common.audit("none");
  containers @3 () -> (containers :Containers) $Common.needs("none") $Common.audit("none");
  content @4 () -> (content :Content) $Common.needs("none") $Common.audit("none");
  snapshots @5 (driver :Text) -> (snapshots :Snapshots) $Common.needs("none") $Common.audit("none");
  # An empty name is the default driver.

  events @6 () -> (events :Events) $Common.needs("none") $Common.audit("none");
  jobs @7 () -> (jobs :Jobs) $Common.needs("none") $Common.audit("none");
  networks @8 () -> (networks :Networks) $Common.needs("none") $Common.audit("none");
  leases @9 () -> (leases :Leases) $Common.needs("none") $Common.audit("none");

  explain @10 (type :Text, id :Text) -> (explanation :Explanation) $Common.needs("read");
  # What keeps something from being collected, or why it goes. `type`: "image", "container", "lease", "content", or "snapshots/"
  # and the driver's name. not_found where it isn't there.

  update @11 (labels :List(Label), fields :List(Text)) -> (info :NamespaceInfo) $Common.needs("write") $Common.audit("none");
  # Takes from `labels` what is named: "labels", "labels.KEY"; where an entry is absent it is removed. Without names all of
  # them. A name never changes: invalid_argument.

  grants @12 () -> (grants :Grants) $Common.needs("none") $Common.audit("none");
  # What was handed out of it. `denied` where your own grant may not be passed on.
}
