@0xb7ce545182988ee0;
# The audit log: who used which authority for what, in a chain that can't be altered unseen. It is the operator's.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct AuditRecord @0xe2721fd77a56c3f8 {
  sequence @0 :UInt64;
  # Counted from 1; a number is used once.
  time @1 :Common.Time;
  # When the call began.
  grants @2 :List(Text);
  # The grants through which it came, the outermost first; none: the operator, or somebody to whom nothing was given yet.
  uid @3 :UInt32;
  gid @4 :UInt32;
  pid @5 :Int32;
  # Who is at the other end, as the kernel said when it connected. A pid of 0: the daemon itself.
  namespace @6 :Text;
  object @7 :Text;
  # Kind and name, as container/web; empty where the method says enough.
  method @8 :Text;
  # As Task.exec. "audit" is what the log says of itself.
  detail @9 :Text;
  # What it was about, as the arguments of a process, or the grant that came of it. Cut off at 512 bytes; a token is never in it.
  verdict @10 :Text;
  # allowed   it was done
  # denied    it was refused for want of authority
  # failed    it was let through, and failed
  # cut       its caller went away before the answer; what was begun may have been done
  # altered   this record is not what was written: nothing of it is told
  error @11 :Text;
  # The code and the sentence, but of what was allowed.
  correlationId @12 :Text;
  # Of the call's context.
  times @13 :UInt32;
  # How many such calls this is: whoever does something, or is refused, again and again leaves one record for many.
}

struct AuditFilter @0xd5369759379f6639 {
  # What is empty lets everything through.
  namespace @0 :Text;
  grant @1 :Text;
  # What came through this one, or through those that come from it, and what was done to it.
  method @2 :Text;
  # A whole name, or an interface and ".*".
  verdict @3 :Text;
  since @4 :Common.Time;
}

struct AuditFault @0xe46723a553795864 {
  sequence @0 :UInt64;
  # Where the chain is broken.
  message @1 :Text;
}

struct AuditReport @0x9f94984f2767140e {
  first @0 :UInt64;
  last @1 :UInt64;
  # The records that there should be: those before were dropped when they were old.
  sound @2 :UInt64;
  # How many of them are what was written.
  head @3 :Text;
  # What the whole chain comes to, in hexadecimal digits: whoever notes it elsewhere can tell later whether it was rewritten.
  faults @4 :List(AuditFault);
  # At most 100.
}

interface Audit @0xcf40ca8f18fe6f11 {
  read @0 (after :UInt64, filter :AuditFilter) -> (cursor :AuditCursor) $Common.needs("root") $Common.audit("none");
  # Those behind a sequence number that pass. The largest number (0xffffffffffffffff) is what is to come.

  verify @1 () -> (report :AuditReport) $Common.needs("root") $Common.audit("none");
  # Reads the whole chain, and says where it is not what was written.
}

interface AuditCursor @0xff09226bdbb31de1 {
  next @0 (max :UInt16, wait :Bool) -> (items :List(AuditRecord), end :Bool) $Common.needs("root") $Common.audit("none");
  # At most 100. With `wait` it waits until there is one. `end`: there are no more just now.
}
