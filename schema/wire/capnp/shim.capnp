@0x9ab8e4f1d6027c35;
# Between the daemon and the shim of a container (or of a group of containers): private, but with a version, since a new
# daemon talks to the shims that an old one started.

using Common = import "common.capnp";

struct Life @0xd4e97b1f860ca253 {
  # What became of one process. The shim writes it to its life record before it tells anybody.
  id @0 :Text;
  # Empty for the first process, else the exec's id.
  pid @1 :UInt32;
  created @2 :Common.Time;
  started @3 :Common.Time;
  # 0 until it was started.
  exited @4 :Common.Time;
  # 0 until it has ended.
  status @5 :UInt32;
  reason @6 :Text;
  signal @7 :UInt32;
  # The number of the signal that ended it, or 0.
  outputEnd @8 :Common.Time;
  # When the last of its output was in the log and with those who follow it; 0 until then.
  oomed @9 :Common.Time;
  # When the container ran out of memory last; 0 is never. Of the first process alone, as `ooms`.
  ooms @10 :UInt64;
  # How often.
  grant @11 :Text;
  # The id of the grant through which it was run, so that a daemon that comes back ends it with that; empty: none. Of a
  # container's first process: through which it was made.
  deleted @12 :Bool;
  # It was deleted, and is only there until the daemon has written down how it ended.
}

struct CreateRequest @0xe6a1c0f2d93b7584 {
  namespace @0 :Text;
  id @1 :Text;
  spec @2 :Data;
  # OCI runtime spec, JSON.
  rootfs @3 :List(Common.Mount);
  runtime @4 :Text;
  # native, or the path of a runc-compatible binary.
  stdio @5 :Common.Stdio;
  # Outputs are null or a descriptor: streams end in the daemon, which makes pipes of them.
  log @6 :Bool;
  # The log file is the descriptor `logFd`.
  logFd @7 :Common.Fd;
  runtimeRoot @8 :Text;
  terminal @9 :Bool;
  bundle @10 :Common.Fd;
  # The bundle's directory.
  logging @11 :Logging;
  # Where `log` is set and this is not null, how the output is kept; `logFd` is not used then.
  runtimeOptions @12 :Data;
  # JSON, as the container has them; empty: none.
  restore @13 :Bool;
  # What runs comes from the checkpoint in `checkpoint`, at the start. Until then there is no process, and its pid is 0.
  checkpoint @14 :Common.Fd;
  # A directory that holds `images`.
  criu @15 :Text;
  # Its path.
  tcpEstablished @16 :Bool;
  unixSockets @17 :Bool;
  # As the checkpoint was made.
  filter @18 :Data;
  # What the spec's seccomp profile compiles to, `struct sock_filter` after `struct sock_filter`; empty: the shim compiles it.
  grant @19 :Text;
  # The id of the grant through which it is made: the streams that come with this are cut when that ends. Empty: none.
}

struct Logging @0xc7f8e7afe65a13b1 {
  # How the output of a container's first process is kept.
  driver @0 :Text;
  # local, json-file, cri, journald or none.
  directory @1 :Common.Fd;
  # Of those that keep files: where these lie.
  maxSize @2 :UInt64;
  maxFiles @3 :UInt32;
  attributes @4 :List(Common.Label);
  # What stands in each record.
  journal @5 :Text;
  # The path of the journal's socket.
}

struct CheckpointRequest @0xc1d0a4e7f23b5896 {
  spec @0 :Data;
  # What the container was made from, JSON.
  directory @1 :Common.Fd;
  # Empty; `images` comes into it.
  criu @2 :Text;
  tcpEstablished @3 :Bool;
  unixSockets @4 :Bool;
}

struct ExecRequest @0x8c75d0be3f9a2164 {
  id @0 :Text;
  process @1 :Data;
  # The `process` object of the OCI runtime spec, JSON.
  stdio @2 :Common.Stdio;
  terminal @3 :Bool;
  grant @4 :Text;
  # Of its `Life`.
}

interface Shim @0xf97b3a5ed806c142 {
  # The bootstrap object of a shim's socket; only the daemon's uid may connect.

  hello @0 (version :UInt32, features :List(Text)) -> (version :UInt32, features :List(Text), pid :UInt32);
  create @1 (request :CreateRequest) -> (container :ShimContainer, life :Life);
  container @2 (namespace :Text, id :Text) -> (container :ShimContainer);
  # One that it made earlier, for a daemon that came back.
  dump @3 () -> (dump :ShimDump);
  prepare @4 (network :Bool) -> ();
  # Makes what its next container will need, before one is asked for; with `network` a network namespace too.
}

struct ShimDump @0xb91f64ce0a7d8235 {
  # How a shim is, for whoever looks for a fault.
  version @0 :UInt32;
  pid @1 :UInt32;
  started @2 :Common.Time;
  descriptors @3 :UInt32;
  resident @4 :UInt64;
  # Bytes.
  proportional @5 :UInt64;
  # Bytes, with what it shares with others in parts.
  connections @6 :UInt32;
  containers @7 :List(ContainerDump);
}

struct ContainerDump @0xd8a3520be79c4f16 {
  namespace @0 :Text;
  id @1 :Text;
  driver @2 :Text;
  paused @3 :Bool;
  processes @4 :List(Life);
}

interface ShimContainer @0x8a3ec7d15b902f64 {
  # A container that the shim made. The empty process id is the container's first process.

  start @0 (id :Text) -> (life :Life);
  wait @1 (id :Text) -> (life :Life);
  state @2 () -> (processes :List(Life), paused :Bool, logLost :UInt64, grants :List(Text));
  # `logLost`: so many bytes of output could not be kept. `grants`: the ids of those through which something was run that may
  # still be there, whatever became of the process itself.
  kill @3 (id :Text, signal :UInt32, all :Bool) -> ();
  exec @4 (request :ExecRequest) -> (life :Life);
  resize @5 (id :Text, rows :UInt16, columns :UInt16) -> ();
  closeStdin @6 (id :Text) -> ();
  attach @7 (id :Text, stdio :Common.Stdio) -> (attachment :ShimAttachment);
  deleteExec @8 (id :Text, keep :Bool, drain :UInt32) -> (life :Life);
  # With `keep` what has ended is there still, as `deleted`, until `forgetExec`. `drain` as below.

  delete @9 (drain :UInt32) -> (life :Life);
  # The container: what still runs is killed, its cgroups and mounts go. A shim that holds no container any more ends
  # when its connection does, and when those who follow what was written have it all. One who takes nothing for `drain`
  # seconds (0: 300) is waited for no longer.

  pause @10 () -> ();
  resume @11 () -> ();
  pids @12 () -> (pids :List(UInt32));
  stdin @13 (id :Text) -> (write :Common.Fd);
  # The write end of a standard input that was declared as `stream`; the shim holds another, until `closeStdin`.

  update @14 (resources :Data) -> ();
  # OCI `linux.resources`, JSON.

  oom @15 (seen :UInt64) -> (life :Life);
  # Returns the first process's life when its `ooms` are not `seen`.

  checkpoint @16 (request :CheckpointRequest) -> (hold :ShimHold);
  # Freezes the container and writes what runs in it into `directory`.

  release @17 () -> ();
  # Behind `delete`: lets go of the root file system, and answers when it is unmounted. That syncs the disk that its
  # writable layer lies on, so `delete` doesn't wait for it. It goes with the last capability, at the latest.

  forgetExec @18 (id :Text, created :Common.Time) -> ();
  # One that is `deleted`; nothing happens where it isn't there.

  endGrant @19 (grant :Text) -> ();
  # Kills what was run through this grant, with all that it has begun; what was not started can't be any more. Of a container that
  # was made through it the streams are cut.
}

interface ShimHold @0xe9c41b7d05a8f362 {
  # A container that was checkpointed stands still for as long as this is held, and then goes on.
}

interface ShimAttachment @0xb25ed7039cf4a816 {
  wait @0 () -> (reason :Text);
}
