@0xeabc497d0e19148d;
# Jobs: work that takes longer than a call should, with progress, and an end.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct JobItem @0xb33854f7db139a64 {
  name @0 :Text;
  # A digest, or what the step is called.
  phase @1 :Text;
  # waiting, elsewhere (another job has it in hand), fetching, unpacking, exists, done.
  done @2 :UInt64;
  total @3 :UInt64;
  # Bytes; a total of 0 is unknown.
}

struct JobInfo @0xb3f596f6eeffc5c9 {
  id @0 :Text;
  kind @1 :Text;
  # pull, import, checkpoint, commit, export, push, convert, unpack.
  subject @2 :Text;
  # What it is about, such as the reference.
  started @3 :Common.Time;
  state @4 :Text;
  # running, done, failed, cancelled.
  error @5 :Text;
  # In the form of common.capnp, where it failed.
  items @6 :List(JobItem);
  stage @7 :Text;
  # What it is at as a whole, in words, such as the host that it waits for; empty where there is nothing to say.
}

interface Job @0xeaba890fdbb7ce57 {
  info @0 () -> (info :JobInfo) $Common.needs("read");

  watch @1 (afterMillis :UInt32) -> (info :JobInfo) $Common.needs("read");
  # Returns when the progress changed, but not before `afterMillis` (10 to 60,000) have passed, or at once when it has ended.

  wait @2 () -> (names :List(Text)) $Common.needs("read");
  # Until it ends: the names of the images that it made, or its error. An export gives none.

  cancel @3 () -> () $Common.needs("write") $Common.audit("none");
  # Returns when it has ended and left nothing behind; one that has ended already stays as it is, and one that waits for others to be
  # done ends at once. Who waits is told `cancelled`. A job goes on when its client disappears, but not when the grant is taken back by
  # which it was begun.
}

interface JobCursor @0xf0d8a31c5bd2e4a1 {
  next @0 (max :UInt16) -> (items :List(JobInfo), end :Bool) $Common.needs("read");
}

interface Jobs @0xd5f1c0b27a9e3c44 {
  # Those of the namespace that run, and the last 64 of the daemon that have ended; a restart of the daemon ends and forgets them.

  list @0 () -> (cursor :JobCursor) $Common.needs("read");
  get @1 (id :Text) -> (job :Job) $Common.needs("read");
  # not_found where there is none, or it is forgotten.
}
