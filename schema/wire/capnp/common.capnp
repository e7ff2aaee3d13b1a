@0xe600ca5136e6e5cc;
# COFFERDAM'S API: words that every interface uses, and the rules that hold for all of them.
#
# These files are the manual: with them and a Cap'n Proto implementation a client can be written in any language. Read this
# one, then gate.capnp (the way in), then what you need: namespace.capnp leads to it. Beside a method stands what its
# name and types don't say; what isn't said there of errors, lists, times and streams is said here.
#
# THE TRANSPORT is two-party Cap'n Proto RPC over a Unix stream socket: messages in the standard framing, not packed, and
# nothing before them. The operator's socket is `cofferd.sock` in the daemon's state directory
# (/run/cofferdam/cofferd.sock); a grant that was exported is `cofferdam.sock` in its directory. The bootstrap object is a
# `Gate`. So a client begins with
#
#     bootstrap -> Gate.enter() or Gate.restore(token) -> Root.namespaces() -> Namespaces.get(name) -> Namespace
#
# and these are sent in one go: a call on the result of a call need not wait for that (pipelining). What fails anywhere in
# such a chain comes out, unchanged, of each call behind it. Letting go of a promise cancels its call, unless others were made on
# it: what lies between need not be kept.
#
# Objects live as long as their connection. When that is lost (an exception of type `disconnected`), connect again, and find
# things by their names; what was asked for last may have been done or not. Containers and jobs go on without you.
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
# methods than its rights would (grant.capnp). What is missing is said: the error is `denied`. A grant that was taken back
# says `revoked`, in calls that are under way too.
#
# ERRORS are Cap'n Proto exceptions whose reason has the form
#   cofferdam:<code> <kind>/<id>: <sentence>
# with the id percent-encoded. Strip every leading "remote exception: " first. Act on the code, show the sentence. A reason
# without the prefix came from a library: it is `unavailable` where the exception's type is `disconnected` or `overloaded`,
# `unimplemented` where that is its type (the other side doesn't know the method), and `internal` otherwise. The codes
# are stable:
#   invalid_argument     it can never succeed as it stands
#   not_found            it isn't there, or you may not know that it is
#   already_exists       the name is taken
#   failed_precondition  the thing is in the wrong state, which the sentence begins with; the same call may succeed later
#   unavailable          a part of the daemon is down or overloaded. Where the sentence has "will be started again",
#                        nothing of the call was done
#   denied               what you hold doesn't allow it
#   revoked              what you hold was taken back
#   out_of_range         an offset or a size lies outside
#   cancelled            it was ended by you, or with you
#   deadline_exceeded    the deadline of your context passed (`Namespace.with`)
#   resource_exhausted   a budget or a disk is full
#   unimplemented        this build, driver or kernel can't
#   data_loss            bytes are not what they should be
#   internal             a defect of the daemon
# More codes may come: treat one that you don't know as `internal`. Any method may fail with `denied`, `revoked`, `unavailable`,
# `deadline_exceeded`, `internal`, with `not_found` when the thing has gone, and with `resource_exhausted` where it writes: that is
# not repeated beside each.
#
# VALUES. A field that is left out is zero, an empty text, an empty list or a null pointer, and means what its comment says
# of that; where nothing is said, that nothing is asked for. Texts are UTF-8. Ids (of containers, execs and groups) are
# letters and digits with single '.', '_' or '-' between them, at most 76 bytes. Names of images, and keys and references
# that you choose, are any text of at most 1,024 bytes. Times are nanoseconds since the Unix epoch, UTC; 0 is "never".
# Sizes are bytes. Signals are their numbers on Linux.
#
# LISTS are cursors: `next(max)` gives at most `max` (1 to 100; more counts as 100) items, and in `end` whether that was the
# last block. A block can be empty before the end. A list is no snapshot: what is made or removed meanwhile may be in it
# or not; nothing comes twice. To be had again, a list is asked for again.
#
# FILTERS are containerd's. Of several texts one must match, none is everything. Each is one or more of `field==value`,
# `field!=value`, `field~=regex` or `field` (it is there), with commas for "and"; values with other than plain characters
# are quoted ("..."). Which fields there are is said beside each list; another is `invalid_argument`.
#
# FIELDS of an update are masks: what they name is taken from the message, "labels" whole and "labels.KEY" one entry, and what
# the message doesn't have there is removed. No names: all that can change.
#
# STREAMS. Bulk bytes go through a `ByteStream`, and records of a log through a `LogSink`: one side gives the other an object
# to write into. Its `write` is a streaming call (`-> stream`): your library says when there is room for more; a plain
# implementation may wait for the answer of each. The first `write` that fails ends a stream; `end` says how all of it went.
# To stop something that is written into an object of yours, drop the call that you gave it to, or let `write` fail.
#
# FILE DESCRIPTORS travel in band: each side numbers the descriptors that it sends on a connection from 0 on, and
# attaches each (SCM_RIGHTS, unix(7)) to a byte of the stream that is not later than the message that names it. A
# message names one by that number (type Fd). A number is good once; at most 64 wait on the daemon's side to be named,
# beyond that the oldest is closed. A client that can't pass descriptors uses the `ByteStream` twin that every such method
# has. The daemon sends one only as the answer to `Snapshot.mountFd`, so a client that reads the socket as a plain stream
# misses nothing else.
#
# LIMITS. A message has at most 1 MiB and 64 levels, a chunk 256 KiB. One connection has at most 256 calls under way, 1,024
# more that wait for a promise, 4,096 objects that are not released, 64 subscriptions, and 16 MiB in the messages of all its
# calls: over that it is told `resource_exhausted`, and cut. Release objects that you don't need. With 4 MiB of answers unread
# nothing more is read from you until you take some.
# A block of a list that is not the last may have fewer items than were asked for, or none: the daemon looks for so long at most. A
# connection has at most 256 cursors. The filters of a list have at most 16 KiB, 256 selectors and 8 regular expressions, all
# together.
#
# PIPELINING: a call may be made on an answer to come, and passed one as an argument, up to 64 deep; what is deeper fails with
# resource_exhausted, and so does a connection that leaves more than 16 MiB of answers unfinished. Results are never kept here for a
# later call (`sendResultsTo.yourself` is unimplemented), and a promise that resolves to another promise, or to an answer to come, stays a
# promise (`Resolve` is unimplemented for it).
#
# CANCELLING: dropping the promise of a call cancels it where it waits. Work that must finish (a commit, a pull) is not
# undone by that.
#
# VERSIONS. These files only grow: methods, fields, values of enums, codes. A message from a newer daemon has more than you
# know; a method that an older one doesn't know is `unimplemented`.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

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
# The number of a descriptor on this connection. One that nobody sent, or that was named before, is `invalid_argument`.

using Time = UInt64;
# Nanoseconds since the Unix epoch, UTC; 0 is "never".

struct Label @0xc1b2111f61dc9f38 {
  key @0 :Text;
  value @1 :Text;
  # Key and value have at most 4,096 bytes together, all labels of a thing 256 KiB, and the key has one at least. An empty value
  # deletes the label. Where a
  # list of labels is a map of something else (sysctls, annotations), key and value are those of the map.
}

struct Platform @0xfcc035cbd9a01f7e {
  # As OCI's image-spec has it: linux, amd64, v2. As a text it is os/arch[/variant].
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
  artifactType @5 :Text;
  # Of the manifest that it names; empty where nobody says.
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
  # Your own name for what you are doing, at most 256 bytes; it stands in logs and audit.
  traceParent @1 :Text;
  # W3C Trace Context, "traceparent". Another form is invalid_argument.
  deadlineMillis @2 :UInt64;
  # Calls that take longer fail with deadline_exceeded; 0 is no deadline. Those that wait for something to happen are not
  # bound by it: `Process.wait`, `Attachment.wait`, `Container.removed` and `logs`, `Job.wait` and `watch`, `Images.obtain`,
  # `EventCursor.next`. It ends the call, and not the work.
}

interface ByteStream @0xd24295c11faf9df7 {
  # A sink of bytes, which the side that has it writes into. Flow control: the window is 1 MiB, a chunk at most 256 KiB.
  # A stream that you give away is written to by the daemon, in order, and ended behind the last byte; one that breaks off is
  # released without. As long as you don't answer its `write` it waits, and no other of yours does; while you read nothing
  # from the connection at all, all of them do.
  write @0 (chunk :Data) -> stream $needs("none") $audit("none");
  # Bytes behind those of the call before. A larger chunk is invalid_argument; behind `end`, and where nobody reads any more,
  # failed_precondition.
  end @1 () -> () $needs("none") $audit("none");
  # No more bytes; returns when all are where they belong, or says why they aren't. A stream dropped without `end` was cut off.
}

struct Input @0xb4acd7ff519828a8 {
  # Where a process reads its standard input from. Left out it is null.
  union {
    null @0 :Void;
    # /dev/null.
    fd @1 :Fd;
    # A pipe, socket, terminal or file of yours.
    stream @2 :Void;
    # What is written into the sink that `Process.stdin` gives. The process reads it to its end once that is ended.
    fifo @3 :Text;
    # The absolute path of a FIFO of the host: needs "host". It is held open for writing too, so that a writer who goes
    # away doesn't end the input; `Process.closeStdin` lets go of it.
    file @4 :Text;
    # The absolute path of a file of the host: needs "host".
  }
}

struct Output @0xf9517376a3f2a091 {
  # Where what a process writes goes. Left out it is null: nowhere.
  union {
    null @0 :Void;
    fd @1 :Fd;
    # A pipe, socket, terminal or file of yours.
    stream @2 :ByteStream;
    # A sink of yours, which is ended behind the last byte: that can be later than the answer of `Process.wait`. Of the client
    # that started the process it makes the process wait when it doesn't keep up. Of one that attached later it is detached
    # when it falls 64 KiB behind, and the process goes on. It ends with your connection. So for each of these: who takes
    # nothing for five minutes (cofferd --drain-timeout) of what a process wrote that was deleted loses the rest.
    fifo @3 :Text;
    # The absolute path of a FIFO of the host: needs "host". It is held open for reading too: nobody has to read yet, a
    # reader may come and go, and without one the process waits when the FIFO is full.
    file @4 :Text;
    # The absolute path of a file of the host, which is appended to, and made (0600) if it isn't there: needs "host".
  }
}

struct Stdio @0xc07bb936b492aa82 {
  # The streams of a process; what is left out is null.
  stdin @0 :Input;
  stdout @1 :Output;
  stderr @2 :Output;
  # Unused with a terminal: there is one stream.
  rows @3 :UInt16;
  columns @4 :UInt16;
  # The first size of the terminal, where the process has one. 0 and 0 are what the spec says (process.consoleSize), or
  # 24 by 80.
}
