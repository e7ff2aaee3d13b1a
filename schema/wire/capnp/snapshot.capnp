@0x97c5e8a1d06f3b24;
# Snapshots: file system states, each on top of a committed parent.
#
# What images are unpacked into is here too, under the chain ids of its layers, and so is the root of each container. To make
# one by hand: `Snapshots.prepare`, mount it (`Snapshot.mounts` or `mountFd`), write into it, unmount it, `commit`. See
# docs/snapshots.md.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";
using Label = Common.Label;

struct SnapshotInfo @0xae39d1f76c50b842 {
  key @0 :Text;
  parent @1 :Text;
  kind @2 :Kind;
  labels @3 :List(Label);
  created @4 :Common.Time;
  updated @5 :Common.Time;
  driver @6 :Text;

  enum Kind @0xc4f08b2e951d7a63 {
    view @0;
    # Read-only, uncommitted.
    active @1;
    # Writable.
    committed @2;
    # Immutable; only these can be parents.
  }
}

struct Change @0xba2fe49c80d37165 {
  # One difference between two file system states.
  kind @0 :Kind;
  path @1 :Data;
  # The bytes of its name, from the root on and beginning with "/".

  enum Kind @0xa5f71c3e9d20b486 {
    added @0;
    changed @1;
    # Itself, or something in it.
    deleted @2;
    # With all that was in it.
  }
}

interface ChangeCursor @0x92c6d3f1a80b57e4 {
  # A directory comes before what is in it, and names in the order of their bytes.
  next @0 (max :UInt16) -> (items :List(Change), end :Bool) $Common.needs("read");
}

struct Layer @0xd14e6b09c7f3a852 {
  # A layer that was written.
  descriptor @0 :Common.Descriptor;
  diffId @1 :Text;
  # The digest of its tar.
}

interface Snapshots @0xd83a6e0f4c17b925 {
  list @0 (filters :List(Text)) -> (cursor :SnapshotCursor) $Common.needs("read");
  # Fields: key (or name), parent, kind (view, active, committed), labels.<key>.

  get @1 (key :Text) -> (snapshot :Snapshot) $Common.needs("read");
  # not_found where there is none.

  prepare @2 (key :Text, parent :Text, labels :List(Label)) -> (snapshot :Snapshot) $Common.needs("write") $Common.audit("none");
  # A writable snapshot on top of a committed one; an empty parent: of nothing. The key is yours to choose, and not taken
  # by another snapshot of the namespace in this driver, whatever its kind. already_exists where it is, not_found where
  # the parent isn't there, invalid_argument where that isn't committed. It stands until it is committed or removed: nothing
  # else ends it, except where it is made through a lease's namespace the end of that lease. What is written into it is sure to last with the commit.

  view @3 (key :Text, parent :Text, labels :List(Label)) -> (snapshot :Snapshot) $Common.needs("write") $Common.audit("none");
  # A read-only one, likewise. It can't be committed.
}

interface SnapshotCursor @0xe95b270ca4d6f318 {
  next @0 (max :UInt16) -> (items :List(SnapshotInfo), end :Bool) $Common.needs("read");
}

interface Snapshot @0x8d2fc6b7e0a93514 {
  info @0 () -> (info :SnapshotInfo) $Common.needs("read");
  usage @1 () -> (size :UInt64, inodes :UInt64) $Common.needs("read");
  # Of this layer alone: bytes on disk, and inodes.

  remove @2 () -> () $Common.needs("write") $Common.audit("none");
  # failed_precondition while another snapshot has it as its parent, or a container uses it. Unmount it first.

  mounts @3 () -> (mounts :List(Common.Mount)) $Common.needs("host") $Common.audit("use");
  # What shows it, on the daemon's host: the same until it is removed. failed_precondition where it is committed: prepare
  # or view one on top of it; and while a container runs in it, where the snapshotter is overlay: what two mounts make of
  # one writable tree is undefined.

  commit @4 (name :Text, labels :List(Label)) -> (snapshot :Snapshot) $Common.needs("write") $Common.audit("none");
  # Makes an active snapshot immutable, and durable, under another key. The old key is free then, and this object of no
  # more use; labels and times are new. already_exists where the name is taken; failed_precondition where it isn't active,
  # or is the root of a container. Write nothing into it meanwhile, or afterwards.

  update @5 (labels :List(Label), fields :List(Text)) -> (info :SnapshotInfo) $Common.needs("write") $Common.audit("none");
  # Takes from `labels` what is named: "labels", "labels.KEY"; where an entry is absent it is removed. Without names all of
  # them. Everything else about a snapshot never changes: invalid_argument.

  limit @6 (bytes :UInt64) -> () $Common.needs("write") $Common.audit("none");
  # The most bytes that an active snapshot may have for itself, besides what it lies on; 0 is no limit. Who writes more gets
  # EDQUOT. unimplemented where the file system has no quotas, with what is missing; failed_precondition where btrfs has them turned
  # off, and where the snapshot isn't active.

  changes @7 (base :Text) -> (cursor :ChangeCursor) $Common.needs("read");
  # What differs from the snapshot `base`, of the same driver; where that is empty, from what it lies on. While something writes
  # to it, a list of several blocks is not of one moment.

  diff @8 (base :Text, mediaType :Text, labels :List(Label)) -> (layer :Layer) $Common.needs("write") $Common.audit("none");
  # The same as a layer, in the content of the namespace, with these labels beside "containerd.io/uncompressed", the diff
  # id. Media types of OCI and Docker, plain, gzip and zstd; empty is OCI's with gzip; unimplemented is any other. Nothing
  # should write to it meanwhile: a file that shrinks while it is read ends it.

  diffFd @9 (base :Text, mediaType :Text, target :Common.Fd) -> (layer :Layer) $Common.needs("read");
  # The same into a file or a pipe of yours; nothing is stored. Answered when all of it is written.

  diffTo @10 (base :Text, mediaType :Text, sink :Common.ByteStream) -> (layer :Layer) $Common.needs("read");
  # The twin: the layer is written into your sink, and that is ended; answered behind it.

  mountFd @11 () -> (mount :Common.Fd) $Common.needs("write") $Common.audit("use");
  # What shows it, as a mount that is attached nowhere (open_tree(2)): attach it by move_mount(2), or open what is in it. No
  # device in it can be used, and no program gets another's rights by its mode. It is gone with its last descriptor, or where
  # it is unmounted. Refused where `mounts` is. It takes the "host" right beside: no revocation takes it back. Without that
  # `diffTo` gives what is in it.
}
