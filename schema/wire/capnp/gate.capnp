@0xaaa3e318b91f15b6;
# The way in.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

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
  # Say which version of this API you speak (1) and who you are, for the logs. The answer has the version of the API that the
  # daemon speaks, its own ("0.1.0"), what it can do beyond that, by names (none yet), and whether it takes file descriptors
  # on this connection. Calling it is polite, not necessary.

  enter @1 () -> (root :Root, grant :GrantInfo) $Common.needs("none") $Common.audit("use");
  # What the daemon's policy grants to you on this socket. On the main socket: everything for the daemon's own effective
  # uid; for others what the operator's rules say (`cofferd --access`), and `denied` without one. On a socket that is a grant (`Grant.export`): that grant, for whoever can connect.
  # `grant` says what it leaves you; it is null where you have everything: so whoever means to use a socket that is a grant sees
  # that it is one.

  restore @2 (token :Text) -> (root :Root, grant :GrantInfo) $Common.needs("none") $Common.audit("give");
  # What the grant of this token gives (grant.capnp), on any socket of the daemon, also beside what `enter` gave. `denied` where
  # there is no such grant any more, its uses are used up, or the token is sealed to another user than the kernel says that you
  # are; invalid_argument for what is no token. Each call is one use. A token is a secret: it belongs into no log and no list
  # of processes.
}

interface Root @0xb0b6a52016d3eb18 {
  # The top of what you have. For the operator that is everything: hand out grants instead. For the holder of a grant it
  # has one namespace, which `namespaces` leads to, and the others of its methods are `denied`.

  namespaces @0 () -> (namespaces :Namespaces) $Common.needs("root") $Common.audit("none");
  # The way to everything else. The holder of a grant has it too.

  system @1 () -> (system :System) $Common.needs("root") $Common.audit("none");
  # The daemon itself (system.capnp).

  collector @2 () -> (collector :Collector) $Common.needs("root") $Common.audit("none");
  # What nothing keeps, and whose the bytes on disk are (gc.capnp).

  audit @3 () -> (audit :Audit) $Common.needs("root") $Common.audit("none");
  # Who used which authority for what (audit.capnp).
}

interface Namespaces @0x9806de058114a631 {
  get @0 (name :Text) -> (namespace :Namespace) $Common.needs("read");
  # not_found unless it exists. `default` always does; others by `create` alone, never by first use. The holder of a grant
  # has one, and any other is not_found; an empty name is that one too (the operator's is invalid_argument).

  create @1 (name :Text, labels :List(Label)) -> (namespace :Namespace) $Common.needs("write") $Common.audit("use");
  # already_exists where it is there. A name is made of words with dots between them, at most 76 bytes in all; a word has two or
  # more letters, digits and inner dashes, begins with a letter, and has a letter behind its dashes. The operator's alone, as is
  # `remove`.

  list @2 (filters :List(Text)) -> (cursor :NamespaceCursor) $Common.needs("read");
  # In the order of their names. Fields: name, labels.<key>.

  remove @3 (name :Text) -> () $Common.needs("write") $Common.audit("use");
  # failed_precondition while it holds what somebody named: containers, images, leases, grants; snapshots, blobs and ingests made
  # by hand. What images that are gone left in it, blobs and layers, goes with it; of what other namespaces have too only its share.
}

interface NamespaceCursor @0xa226d59f15330a7f {
  next @0 (max :UInt16) -> (items :List(NamespaceInfo), end :Bool) $Common.needs("read");
}
