@0xe76120d3b09ec5e8;
# What registries are shown: kept by the daemon, for a namespace, and for one host each.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct CredentialInfo @0xa197c93e04f4bd3f {
  host @0 :Text;
  # host[:port] of the registry to which it is shown, and to no other; as it is written in the names of images, or for a mirror in
  # the daemon's table of hosts.
  user @1 :Text;
  kind @2 :Kind;
  updated @3 :Common.Time;

  enum Kind @0x85a05f3dba256b4c {
    password @0;
    identity @1;
    # A token by which tokens are got (OAuth2's refresh token).
  }
}

interface Credentials @0xbb76aedd9f7612da {
  # There is no way to get a secret out again.

  put @0 (info :CredentialInfo, secret :Text) -> () $Common.needs("write") $Common.audit("give");
  # Replaces what there was for the host. `updated` doesn't count. It is shown by pulls and pushes of the namespace that have none of
  # their own, over the way that the daemon's table of hosts says: one that wants plain http, or brings a certificate to trust, isn't
  # given it.

  get @1 (host :Text) -> (info :CredentialInfo) $Common.needs("read");
  # not_found where there is none.

  list @2 () -> (cursor :CredentialCursor) $Common.needs("read");

  remove @3 (host :Text) -> () $Common.needs("write") $Common.audit("take");
  # not_found where there is none.
}

interface CredentialCursor @0xc45155d3f4c986eb {
  next @0 (max :UInt16) -> (items :List(CredentialInfo), end :Bool) $Common.needs("read");
}
