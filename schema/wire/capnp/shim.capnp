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
  log @6 :Bool;
  # The log file is the descriptor `logFd`.
  logFd @7 :Common.Fd;
  runtimeRoot @8 :Text;
  systemdCgroup @9 :Bool;
  terminal @10 :Bool;
}

struct ExecRequest @0x8c75d0be3f9a2164 {
  id @0 :Text;
  process @1 :Data;
  # The `process` object of the OCI runtime spec, JSON.
  stdio @2 :Common.Stdio;
  terminal @3 :Bool;
}

interface Shim @0xf97b3a5ed806c142 {
  # The bootstrap object of a shim's socket; only the daemon's uid may connect.

  hello @0 (version :UInt32, features :List(Text)) -> (version :UInt32, features :List(Text), pid :UInt32);
  create @1 (request :CreateRequest) -> (life :Life);
  start @2 (id :Text) -> (life :Life);
  wait @3 (id :Text) -> (life :Life);
  state @4 () -> (processes :List(Life), paused :Bool);
  kill @5 (id :Text, signal :UInt32, all :Bool) -> ();
  exec @6 (request :ExecRequest) -> (life :Life);
  resize @7 (id :Text, rows :UInt16, columns :UInt16) -> ();
  closeStdin @8 (id :Text) -> ();
  attach @9 (id :Text, stdio :Common.Stdio) -> (attachment :ShimAttachment);
  deleteExec @10 (id :Text) -> (life :Life);
  delete @11 () -> (life :Life);
  # The container: its cgroups and mounts go. The shim ends behind the answer.

  pause @12 () -> ();
  resume @13 () -> ();
  pids @14 () -> (pids :List(UInt32));
  stdin @15 (id :Text) -> (sink :Common.ByteStream);
}

interface ShimAttachment @0xb25ed7039cf4a816 {
  wait @0 () -> (reason :Text);
}
