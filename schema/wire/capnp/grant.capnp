@0xc72e9be94275c2c6;
# Grants: what is handed out of a namespace, to be taken back.
#
# A grant leaves of its giver's authority what its options say, and whoever holds it (by a token, or by a socket that is
# it) reaches that and nothing else. It comes from the grant through which it was made, and what it may do is what all
# of those on its path leave: deriving only ever narrows. Taking it back ends it and all that come from it, at once: the
# calls that are under way fail with `revoked`. It ends calls, not containers. A container that was made through a
# grant keeps the bounds of that grant for as long as it is there.
#
# The holder gets a `Root` from `Gate.restore`, or from `Gate.enter` on a socket that is a grant. It has one
# namespace, and there the objects are those that everybody has; a method that the grant doesn't cover is `denied`, and
# a container that it doesn't reach is `not_found`.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct GrantOptions @0xcf86c10aa3c3e63a {
  label @0 :Text;
  # What people call it; at most 256 bytes.
  facets @1 :List(Text);
  # What may be done: the methods of any of these; none: all that the rights allow. Whoever chooses containers or images
  # names at least one.
  #   "observer"  to look at everything
  #   "logs"      what containers have written
  #   "exec"      to run another process in a container
  #   "kill"      to signal and end tasks
  #   "events"    what happens
  #   "metrics"   what containers use
  #   "backup"    to read blobs, and the images that lead to them
  #   "pull"      to pull images
  #   "deploy"    to create, run and remove containers
  # docs/grants.md has the methods of each, and `Grant.explain` those that a grant leaves.
  rights @2 :List(Text);
  # "read", "write", "run", "networks", "host", as common.capnp has them. "write" and "run" bring "read"; "host" brings all.
  # None: what the facets take, or without a facet "read".
  containers @3 :List(Text);
  # Only these, by their ids.
  filters @4 :List(Text);
  # Only those that pass one of these: as in Containers.list. They are looked at again at each call. Of `containers`, `filters`
  # and `own` each must let one through.
  own @5 :Bool;
  # Only those that were made through this grant, or through one that comes from it.
  images @6 :List(Text);
  # Only these: a whole name, the beginning of one and "*", or the digest of what a name stands for. This holds for what
  # can be got and pulled, and for what containers are made from. What the namespace has of other images is brought once more by who
  # pulls, and is none of what an image has that was pulled so.
  memory @7 :UInt64;
  nanoCpus @8 :UInt64;
  pids @9 :UInt64;
  storage @10 :UInt64;
  # The most that a container made through it may have, now and later: whoever asks for none of it gets so much, whoever
  # asks for more is refused. 0 is no bound.
  notAfter @11 :Common.Time;
  # When it ends by itself; 0 is never.
  uses @12 :UInt64;
  # How often its token may be used; 0 is as often as one likes.
  mayDelegate @13 :Bool;
  # Its holder may make grants that come from it.
  maySave @14 :Bool;
  # And may have tokens made for those.
  mostContainers @15 :UInt64;
  # How many containers there may be at once that were made through it, or through those that come from it. 0 is no bound.
  mostCalls @16 :UInt64;
  # How many calls may be under way at once, likewise; those that wait for something to happen count, and those that need nothing
  # don't. 0 is no bound. What is beyond a bound is refused with resource_exhausted.
  networks @17 :List(Text);
  # Which networks a container may ask for, of those that the rights allow: "none" (its own), "container" (another one's),
  # "host", the path of a network namespace, the name of a network. None: all of these.
  mostDisk @18 :UInt64;
  # How many bytes of the disk what came through it may have, or through those that come from it: blobs that were ingested, pulled and
  # imported, and of its containers what they may write (their `storage`). 0 is no bound. Their logs don't count: with this each may
  # keep as much as one that says nothing of it (docs/logs.md), and more is refused.
}

struct GrantInfo @0xb06bb10aaa841e12 {
  id @0 :Text;
  # It names the grant and gives nothing.
  parent @1 :Text;
  # The one that it comes from; empty: the operator.
  namespace @2 :Text;
  options @3 :GrantOptions;
  # What is left of it in the end. Of lists that several grants of its path give, those that it gave itself are told.
  created @4 :Common.Time;
  by @5 :UInt32;
  # The user who made it.
  saved @6 :Bool;
  # There is a token.
  sealed @7 :Bool;
  sealedTo @8 :UInt32;
  # Only this user may use the token.
  exported @9 :Text;
  # The directory in which a socket is it; empty: none.
  holders @10 :UInt32;
  # How many connections have it just now, and grants come from it.
  rights @11 :List(Text);
  # What is left of the rights.
  made @12 :UInt64;
  # How many containers there are that were made through it or through those that come from it. Told by `Grant.info`.
  calling @13 :UInt64;
  # How many calls are under way, where it bounds them itself. Told by `Grant.info`.
  stored @14 :UInt64;
  # How many bytes of the disk are taken of what it may have. Told by `Grant.info`.
}

interface GrantCursor @0xe46de8017af7feb4 {
  next @0 (max :UInt16) -> (items :List(GrantInfo), end :Bool) $Common.needs("none") $Common.audit("none");
}
