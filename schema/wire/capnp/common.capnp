@0xe600ca5136e6e5cc;
# COFFERDAM'S API: words that every interface uses, and the rules that hold for all of them.
#
# These files are the manual: with them and a Cap'n Proto implementation a client can be written in any language.
#
# THE TRANSPORT is two-party Cap'n Proto RPC over a Unix stream socket. The bootstrap object is a `Gate` (gate.capnp).
#
# AUTHORITY is what you hold. There are no paths and no names from the top: each object is reached through the object
# that holds it, and a method never takes the name of a thing outside what its object reaches. Each method says in
# `$needs(...)` which right its object's grant must carry:
#   "none"   nothing but the object itself
#   "read"   to look at what the object reaches
#   "write"  to change it
#   "run"    to run code in it
#   "host"   to touch the host: raw paths, raw specs, host namespaces, runtime binaries, mounts, descriptors of its files
#   "root"   only the operator has it
# A right to connect containers to networks of the host's configuration, "networks", is checked where that is asked for;
# whoever has "host" has it. "write" and "run" bring "read", and "host" brings all of these. A grant may leave fewer
# methods than its rights would (grant.capnp). What is missing is said: the error is `denied`.
#
# ERRORS are Cap'n Proto exceptions whose reason has the form
#   cofferdam:<code> <kind>/<id>: <sentence>
# with the id percent-encoded. Strip every leading "remote exception: " first; a reason without the prefix counts as
# `internal`. The codes are stable: invalid_argument, not_found, already_exists, failed_precondition, unavailable,
# denied, revoked, out_of_range, cancelled, deadline_exceeded, resource_exhausted, unimplemented, data_loss, internal.
#
# FILE DESCRIPTORS travel in band: each side numbers the descriptors that it sends on a connection from 0 on, and
# attaches each (SCM_RIGHTS, unix(7)) to a byte of the stream that is not later than the message that names it. A
# message names one by that number (type Fd). A number is good once. A client that can't pass descriptors uses the
# `ByteStream` twin that every such method has.
#
# LISTS are cursors: `next(max)` gives at most `max` (1 to 100) items and says whether it was the last block. A block that is
# not may have fewer, or none: the daemon looks for so long at most. A connection has at most 256 cursors. The filters of a list
# have at most 16 KiB, 256 selectors and 8 regular expressions, all together.
#
# TIMES are nanoseconds since the Unix epoch, UTC; 0 is "never".
#
# PIPELINING: a call may be made on an answer to come, and passed one as an argument, up to 64 deep; what is deeper fails with
# resource_exhausted, and so does a connection that leaves more than 16 MiB of answers unfinished. Results are never kept here for a
# later call (`sendResultsTo.yourself` is unimplemented), and a promise that resolves to another promise, or to an answer to come, stays a
# promise (`Resolve` is unimplemented for it).
#
# CANCELLING: dropping the promise of a call cancels it where it waits. Work that must finish (a commit, a pull) is not
# undone by that.

annotation needs @0xcc13fd54f4681bfe (method) :Text;
# The right that the method needs.

annotation audit @0xfd5ab50227b0f2df (method) :Text;
# What a call of the method leaves in the audit log (audit.capnp). A method that needs "read" leaves nothing where it says
# nothing, and each other says it:
#   "none"  nothing
#   "use"   a record, which is on disk within 100 ms: it runs code, or uses authority so that somebody may want to know
#   "give"  a record, which is on disk before the answer: it gives authority. Where it can't be recorded it is refused
#   "take"  the same of what takes authority back; that is done even where it can't be recorded, and the answer says so
# Every call that is refused for want of authority leaves a record, whatever its method says.

using Fd = UInt32;
# The number of a descriptor on this connection.

using Time = UInt64;

struct Label @0xc1b2111f61dc9f38 {
  key @0 :Text;
  value @1 :Text;
  # Key and value have at most 4,096 bytes together. An empty value deletes the label.
}

struct Platform @0xfcc035cbd9a01f7e {
  os @0 :Text;
  architecture @1 :Text;
  variant @2 :Text;
}

struct Descriptor @0xaf74d0642f82cf7e {
  # OCI image-spec, "Content Descriptors".
  mediaType @0 :Text;
  digest @1 :Text;
  size @2 :UInt64;
  annotations @3 :List(Label);
  platform @4 :Platform;
  # Null where there is none.
}

struct Any @0xa060aca201c84e1a {
  # A payload that the daemon keeps without reading it.
  typeUrl @0 :Text;
  value @1 :Data;
}

struct Mount @0x8c8687f3661065fd {
  # One mount(2) of a list applied in order onto one target.
  type @0 :Text;
  source @1 :Text;
  options @2 :List(Text);
}

struct Context @0xc5c3cf113c7c7131 {
  # What `Namespace.with` lays over everything reached from there.
  correlationId @0 :Text;
  # Your own name for what you are doing; it stands in logs and audit.
  traceParent @1 :Text;
  # W3C Trace Context, "traceparent".
  deadlineMillis @2 :UInt64;
  # Calls that take longer fail with deadline_exceeded; 0 is no deadline. `wait` and cursors are not bound by it.
}

interface ByteStream @0xd24295c11faf9df7 {
  # A sink of bytes. Flow control: the window is 1 MiB, a chunk at most 256 KiB.
  write @0 (chunk :Data) -> stream $needs("none") $audit("none");
  end @1 () -> () $needs("none") $audit("none");
  # No more bytes; returns when all are where they belong. A stream dropped without `end` was cut off.
}

struct Input @0xb4acd7ff519828a8 {
  # Where a process reads its standard input from.
  union {
    null @0 :Void;
    # /dev/null.
    fd @1 :Fd;
    # A pipe, socket, terminal or file of yours.
    stream @2 :Void;
    # What is written to `Process.stdin`.
    fifo @3 :Text;
    # The absolute path of a FIFO of the host: needs "host". It is held open for writing too, so that a writer who goes
    # away doesn't end the input; `Process.closeStdin` lets go of it.
    file @4 :Text;
    # The absolute path of a file of the host: needs "host".
  }
}

struct Output @0xf9517376a3f2a091 {
  # Where what a process writes goes.
  union {
    null @0 :Void;
    fd @1 :Fd;
    # A pipe, socket, terminal or file of yours.
    stream @2 :ByteStream;
    # A sink of yours. Of the client that started the process it makes the process wait when it doesn't keep up. Of one
    # that attached later it is detached when it falls 64 KiB behind, and the process goes on.
    fifo @3 :Text;
    # The absolute path of a FIFO of the host: needs "host". It is held open for reading too: nobody has to read yet, a
    # reader may come and go, and without one the process waits when the FIFO is full.
    file @4 :Text;
    # The absolute path of a file of the host, which is appended to, and made (0600) if it isn't there: needs "host".
  }
}

struct Stdio @0xc07bb936b492aa82 {
  stdin @0 :Input;
  stdout @1 :Output;
  stderr @2 :Output;
  # Unused with a terminal: there is one stream.
  rows @3 :UInt16;
  columns @4 :UInt16;
  # The first size of the terminal, where the process has one. 0 and 0 are what the spec says (process.consoleSize), or
  # 24 by 80.
}
