@0xaaa3e318b91f15b6;
# The way in.

using Common = import "common.capnp";
using Label = Common.Label;
using Namespace = import "namespace.capnp".Namespace;
using NamespaceInfo = import "namespace.capnp".NamespaceInfo;
using System = import "system.capnp".System;
using Audit = import "audit.capnp".Audit;
using Collector = import "gc.capnp".Collector;
using GrantInfo = import "grant.capnp".GrantInfo;

interface Gate @0xa6f6db33449d84d6 {
  # The bootstrap object of every connection. It confers nothing.

  hello @0 (version :UInt32, name :Text) -> (version :UInt32, daemon :Text, features :List(Text), fds :Bool)
    $Common.needs("none") $Common.audit("none");
  # Say which version of this API you speak (1) and who you are, for the logs. The answer has the daemon's versions and
  # whether file descriptors pass on this connection. Calling it is polite, not necessary.

  enter @1 () -> (root :Root, grant :GrantInfo) $Common.needs("none") $Common.audit("use");
  # What the daemon's policy grants to you on this socket. On the main socket: everything for the daemon's own effective
  # uid, `denied` for everybody else. On a socket that is a grant (`Grant.export`): that grant, for whoever can connect;
  # `grant` is null otherwise.

  restore @2 (token :Text) -> (root :Root, grant :GrantInfo) $Common.needs("none") $Common.audit("give");
  # What the grant of this token gives (grant.capnp), on any socket. `denied` where there is no such grant, or the token is
  # sealed to another user than the kernel says that you are.
}

interface Root @0xb0b6a52016d3eb18 {
  # The top of what you have. For the operator that is everything: hand out grants instead. For the holder of a grant it
  # has one namespace, which `namespaces` leads to, and the others of its methods are `denied`.

  namespaces @0 () -> (namespaces :Namespaces) $Common.needs("root") $Common.audit("none");
  system @1 () -> (system :System) $Common.needs("root") $Common.audit("none");
  collector @2 () -> (collector :Collector) $Common.needs("root") $Common.audit("none");
  audit @3 () -> (audit :Audit) $Common.needs("root") $Common.audit("none");
}

interface Namespaces @0x9806de058114a631 {
  get @0 (name :Text) -> (namespace :Namespace) $Common.needs("read");
  # not_found unless it exists. `default` always does; others by `create` alone, never by first use. The holder of a grant
  # has one; an empty name is that one too.

  create @1 (name :Text, labels :List(Label)) -> (namespace :Namespace) $Common.needs("write") $Common.audit("use");
  list @2 (filters :List(Text)) -> (cursor :NamespaceCursor) $Common.needs("read");
  remove @3 (name :Text) -> () $Common.needs("write") $Common.audit("use");
  # failed_precondition while it holds what somebody named: containers, images, leases, snapshots made by hand. What images
  # that are gone left in it, blobs and layers, goes with it; of what other namespaces have too only its share.
}

interface NamespaceCursor @0xa226d59f15330a7f {
  next @0 (max :UInt16) -> (items :List(NamespaceInfo), end :Bool) $Common.needs("read");
}
