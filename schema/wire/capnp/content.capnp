@0xd19b3f7ac4e06258;
# Content: blobs by digest, and the ingests that become blobs. Knowing a digest grants nothing: a namespace sees a
# blob only if the bytes came through it.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";
using Label = Common.Label;

struct BlobInfo @0xc70e9a4d5b12f386 {
  digest @0 :Text;
  size @1 :UInt64;
  labels @2 :List(Label);
  created @3 :Common.Time;
  updated @4 :Common.Time;
}

struct IngestInfo @0x8f5d26b1ea97c043 {
  reference @0 :Text;
  offset @1 :UInt64;
  # How many bytes are there.
  total @2 :UInt64;
  # How many there will be; 0 is unknown.
  expected @3 :Text;
  # The digest that it must have; empty is any.
  started @4 :Common.Time;
  updated @5 :Common.Time;
  digest @6 :Text;
  # Of the bytes that are there. Only `Ingest.info` says it: who doesn't hold an ingest would have to hash it.
}

interface Content @0xe2c6b4807d1f5a39 {
  # Digests are algorithm:hex, such as sha256:6402…, in lower case.

  get @0 (digest :Text) -> (blob :Blob) $Common.needs("read");
  # not_found where this namespace hasn't got it.

  list @1 (filters :List(Text)) -> (cursor :BlobCursor) $Common.needs("read");
  # Fields: digest, labels.<key>.

  ingest @2 (reference :Text, total :UInt64, expected :Text, algorithm :Text) -> (ingest :Ingest) $Common.needs("write") $Common.audit("none");
  # Opens the ingest of that name, or takes up where an earlier one ended: `Ingest.info` says where. Only one client holds it at
  # a time, until it releases the object; what was written stays. Another one is refused at once (`unavailable`), and nobody waits here
  # for the first: who wants to asks again. already_exists if this namespace has the expected blob. Algorithm: sha256 (also if empty), sha512, blake3; where a digest is expected its own.
  #
  # What is there is hashed from where its hash was kept, which is every 64 MiB as they come. Of an ingest of
  # which the disk has refused something nothing is there.
  #
  # In order: `ingest`, then `sink` with its bytes and its `end` (or `takeFd`), then `commit`.

  ingests @3 (filters :List(Text)) -> (cursor :IngestCursor) $Common.needs("read");
  # Fields: ref.

  abort @4 (reference :Text) -> () $Common.needs("write") $Common.audit("none");
  # Drops it and its bytes, whoever holds it: that one then fails to commit. not_found where there is none.

  remove @5 (digest :Text) -> () $Common.needs("write") $Common.audit("none");
  # From this namespace, whatever refers to it. Open readers go on.

  status @6 (reference :Text) -> (info :IngestInfo) $Common.needs("read");
  # How an ingest stands, without taking hold of it.
}

interface BlobCursor @0xa5d8f0c3962be714 {
  next @0 (max :UInt16) -> (items :List(BlobInfo), end :Bool) $Common.needs("read");
}

interface IngestCursor @0xbe1740dfa68c9325 {
  next @0 (max :UInt16) -> (items :List(IngestInfo), end :Bool) $Common.needs("read");
}

interface Blob @0xdb6f8e135c0a7294 {
  info @0 () -> (info :BlobInfo) $Common.needs("read");

  read @1 (offset :UInt64, length :UInt64, sink :Common.ByteStream) -> () $Common.needs("read");
  # Writes the bytes into your sink and ends it; returns behind that. A length of 0 is "to the end"; beyond the end:
  # out_of_range. Who reads all of them has them compared with the digest meanwhile: where the disk has changed them it is data_loss
  # before the last ones, and the blob counts as damaged.

  readFd @2 (offset :UInt64, length :UInt64, sink :Common.Fd) -> () $Common.needs("read");
  # The twin: writes into a pipe, socket or file of yours; returns when all is written. The kernel may move the bytes without
  # anybody reading them: they are not compared with the digest.

  update @3 (labels :List(Label), fields :List(Text)) -> (info :BlobInfo) $Common.needs("write") $Common.audit("none");
  # Takes from `labels` what is named: "labels", "labels.KEY"; where an entry is absent it is removed. Without names all of
  # them. Everything else about a blob never changes: invalid_argument.
}

interface Ingest @0xf06a3c9be7d85142 {
  # One that you hold. After `commit` it is of no more use: failed_precondition.

  info @0 () -> (info :IngestInfo) $Common.needs("read");
  sink @1 () -> (sink :Common.ByteStream) $Common.needs("write") $Common.audit("none");
  # Bytes go behind what is there. `end` on it returns when they are on their way to disk; it doesn't commit.

  truncate @2 () -> () $Common.needs("write") $Common.audit("none");
  # Begins again from nothing.

  commit @3 (size :UInt64, expected :Text, labels :List(Label)) -> (digest :Text) $Common.needs("write") $Common.audit("none");
  # Makes it a blob of the namespace; synced to disk when it returns, and the reference is free. A size of 0 and an empty digest
  # are not compared. data_loss on a mismatch: the bytes stay, and the ingest can be opened again and gone on with.
  # already_exists where the namespace has the blob.

  takeFd @4 (source :Common.Fd) -> (offset :UInt64) $Common.needs("write") $Common.audit("none");
  # The twin of `sink`: reads a pipe, socket or file of yours to its end, a file from where it stands. Returns when all of it
  # is written, with the ingest's new offset. What was read before a failure is there. To take up a copy of a file, let it
  # stand where `info` says; of what can't seek, truncate first.
}
