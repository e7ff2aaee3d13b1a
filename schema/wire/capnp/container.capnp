@0xa4d96f2e7b0c1835;
# Containers, their tasks, and the processes in them.
#
# A container is a record and a writable file system; its task is what runs in it, and can come and go. In order:
#
#   Images.get or obtain -> Containers.create -> Container.createTask -> Task.start -> Task.wait -> Container.remove
#
# all of which may be sent in one go. A task is `created` until it is started, then `running` (or `paused`), and `stopped` when
# its first process has ended; `Task.delete` or `Container.remove` takes it away. What a state forbids is
# failed_precondition:
#
#                                    created  running  paused  stopped
#   start                            yes      -        -       -
#   pause, resume                    -        pause    resume  -
#   kill, resize                     yes      yes      yes     -        (kill of what has ended: not_found)
#   exec; to start one               exec     both     exec    -
#   checkpoint                       -        yes      yes     -
#   pids, processes                  yes      yes      yes     -
#   delete, remove without force     yes      -        -       yes
#   rename                           -        -        -       yes      (and without a task)
#   state, wait, attach, logs, update, metrics, updateResources: in each
#
# What is asked of a task that isn't there is not_found, of kind task.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";
using Label = Common.Label;
using Image = import "image.capnp".Image;
using Job = import "job.capnp".Job;
using ChangeCursor = import "snapshot.capnp".ChangeCursor;
using Metrics = import "metrics.capnp".Metrics;

struct BindMount @0xe8c07d3b5f92a164 {
  target @0 :Text;
  # Absolute path in the container; made if it isn't there. Neither / nor below /proc.
  union {
    hostPath @1 :Text;
    # A path of the host, opened with the daemon's authority: needs "host".
    tmpfs @2 :UInt64;
    # A fresh tmpfs of at most so many bytes; 0 is the kernel's default.
  }
  readOnly @3 :Bool;
  options @4 :List(Text);
  # More mount options, such as nosuid, noexec, rprivate.
}

struct Rlimit @0x96b1e4fa0d8c7253 {
  # RTPRIO, NICE, MEMLOCK, SIGPENDING and MSGQUEUE above the daemon's own need "host".
  name @0 :Text;
  # Such as RLIMIT_NOFILE.
  soft @1 :UInt64;
  # In the limit's own unit (getrlimit(2)); the largest number is "unlimited". Likewise `hard`.
  hard @2 :UInt64;
}

struct IdMap @0x8f3b1c74d9e2a650 {
  container @0 :UInt32;
  # The first id in the container.
  host @1 :UInt32;
  # What that one is on the host.
  size @2 :UInt32;
  # How many.
}

struct Device @0xa1d84c0be7635f92 {
  hostPath @0 :Text;
  target @1 :Text;
  # Below /dev; empty: the same.
  access @2 :Text;
  # Made of r, w and m; empty is rwm.
}

struct NamespaceChoice @0xc6e90b52af18d473 {
  kind @0 :Text;
  # pid, ipc or uts.
  place @1 :Text;
  # host, or the path of a namespace.
}

struct ContainerOptions @0xd7f29c60e1b4853a {
  # The typed options from which the daemon makes the OCI runtime spec. An empty field is the image's choice, or the
  # default. What is wrong is invalid_argument, and named. See docs/run-options.md.
  args @0 :List(Text);
  # Replace the image's command; its entrypoint stays.
  entrypoint @1 :List(Text);
  replaceEntrypoint @2 :Bool;
  # Then `entrypoint` counts, even if it is empty.
  env @3 :List(Text);
  # KEY=value; a later one wins over an earlier one and over the image's.
  workdir @4 :Text;
  # Absolute; empty is the image's, else /.
  user @5 :Text;
  # name, uid, name:group or uid:gid, looked up in the container's own files; empty is the image's, else root.
  hostname @6 :Text;
  # Empty is the id.
  terminal @7 :Bool;
  # Its first process has a terminal: one stream, which is `stdin` and `stdout` of `Stdio`.
  readOnly @8 :Bool;
  # The root file system.
  mounts @9 :List(BindMount);
  capAdd @10 :List(Text);
  capDrop @11 :List(Text);
  # Names with or without CAP_; ALL is all. Adding needs "host".
  network @12 :Network;
  memory @13 :UInt64;
  # Bytes; 0 is no limit.
  nanoCpus @14 :UInt64;
  # 1,000,000,000 is one processor; 0 is no limit.
  pids @15 :UInt64;
  # Processes and threads; 0 is no limit.
  allowNewPrivileges @16 :Bool;
  # Set-uid programs and file capabilities work.
  seccompUnconfined @17 :Bool;
  # No filter: needs "host".
  rlimits @18 :List(Rlimit);
  sysctls @19 :List(Label);
  # Of its own namespaces: kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*, net.* but on the host's network.
  annotations @20 :List(Label);
  # Of the OCI runtime spec.
  shmSize @21 :UInt64;
  # Of /dev/shm in bytes; 0 is 64 MiB.
  userns @22 :List(IdMap);
  # A user namespace of its own, with these ids, of users and of groups alike; none: ids are the host's.
  oomScoreAdj @23 :Int32;
  # -1000 to 1000. Below 0 needs "host".
  devices @24 :List(Device);
  # Need "host".
  apparmor @25 :Text;
  # The name of a profile. Needs "host".
  namespaces @26 :List(NamespaceChoice);
  # Those that are not its own. Need "host".
  cgroup @27 :Text;
  # Its path; empty: the daemon chooses it. Needs "host". The driver `native` wants one that isn't there yet. Others take one that is,
  # and then all that is in it is the container's: should the shim be lost, all of it is killed, and the group removed.
  seccompProfile @28 :Data;
  # In place of the default filter: linux.seccomp of an OCI runtime spec (JSON). Needs "host".
  networking @29 :NetworkOptions;
  # Where it chooses a network, `network` doesn't count.

  enum Network @0xb92d0c5ae76f3841 {
    none @0;
    # A network namespace with nothing but a loopback interface.
    host @1;
    # The host's own: needs "host".
  }
}

struct NetworkOptions @0xcb3f5ed0a1794286 {
  union {
    unset @0 :Void;
    # As the field `network` says.
    name @1 :Text;
    # A network of the host's configuration (`Namespace.networks`), with a network namespace of its own: needs
    # "networks".
    path @2 :Text;
    # The network namespace of the host's at this absolute path, such as /run/netns/blue: needs "host".
    container @3 :Text;
    # That of another container of the same namespace, by id. It must run when the task is created.
    host @11 :Void;
    # The host's own: needs "host".
  }
  ports @4 :List(PortMapping);
  # Published on the host. They, `addresses` and `mac` need a named network whose plugins have that capability.
  addresses @5 :List(Text);
  # That it is to have, each with or without the length of its prefix.
  mac @6 :Text;
  # The hardware address that its interface is to have.
  dnsServers @7 :List(Text);
  # In place of those that the network says, or the host. Likewise the next two. A single "." as `dnsSearch` is none.
  dnsSearch @8 :List(Text);
  dnsOptions @9 :List(Text);
  hosts @10 :List(Label);
  # More lines of its /etc/hosts: name and address. A name may come more than once.
}

struct PortMapping @0xf08c6b2d47e5a913 {
  hostPort @0 :UInt16;
  containerPort @1 :UInt16;
  protocol @2 :Protocol;
  hostAddress @3 :Text;
  # Of the host, that it is published on; empty is every one. Ports that another container has are already_exists.

  enum Protocol @0x9e61d7f4c05b382a {
    tcp @0;
    udp @1;
    sctp @2;
  }
}

struct NetworkStatus @0xa5d40e79b6c1f832 {
  # What a task is connected to.
  network @0 :Text;
  device @1 :Text;
  # The interface in the container.
  mac @2 :Text;
  # Empty if the plugins don't tell it.
  addresses @3 :List(Text);
  # Each with the length of its prefix, such as 10.88.0.2/16.
  gateways @4 :List(Text);
  ports @5 :List(PortMapping);
}

struct NetworkInfo @0xd93b827c5f0e6a14 {
  # A network that the host has configured.
  name @0 :Text;
  versions @1 :List(Text);
  # Of CNI, that it may be used in.
  plugins @2 :List(Text);
  # The types of its chain, in their order.
  config @3 :Text;
  # The chain as JSON; empty in lists.
}

interface Networks @0x8fe5c3160d7ab249 {
  # The networks of the host's configuration: files in a directory, that can't be changed from here.
  list @0 () -> (cursor :NetworkCursor) $Common.needs("read");
  get @1 (name :Text) -> (info :NetworkInfo) $Common.needs("read");
  # not_found where there is none.
}

interface NetworkCursor @0xb21f7c8ea3d64905 {
  next @0 (max :UInt16) -> (items :List(NetworkInfo), end :Bool) $Common.needs("read");
}

struct CreateParams @0xc3a8f0d74e6b1592 {
  id @0 :Text;
  # Letters and digits with single '.', '_' or '-' between them, at most 76; empty: the daemon chooses one.
  image @1 :Image;
  # Got from the same namespace on this connection; anything else is invalid_argument. May be the result of a call that is
  # under way.
  options @2 :ContainerOptions;
  labels @3 :List(Label);
  runtime @4 :Text;
  # native (also if empty), or one that the operator names: runc, crun, youki, and those of `cofferd --runtime`. Any other, and
  # a path, needs "host".
  driver @5 :Text;
  # Of the snapshot (`Namespace.snapshots`); empty is the default.
  removeOnExit @6 :Bool;
  # The daemon removes container, task and snapshot when the task has ended, whether or not the client is still there.
  # Before the start it is the client's that made it, or that made its task last: it goes a few seconds after that one's
  # connection, unless somebody starts it meanwhile.
  platform @7 :Text;
  # Of the image, os/arch[/variant]; empty is the host's. not_found if the image is not there for it.
  logDriver @8 :Text;
  # How what it writes is kept, where its task has a log: local (also if empty), json-file, cri, journald or none.
  logOptions @9 :List(Label);
  # max-size and max-file bound the files; labels names those that stand in each record. See docs/logs.md. Through a grant with
  # `mostDisk` the two allow together what they do when they aren't given, at most.
  group @10 :Text;
  # Containers of one group share a shim, as the containers of a pod do: they end together if that is killed. While it doesn't
  # answer no other can be made to join it (`unavailable`). A name as an id is; empty: none.
  runtimeOptions @11 :Common.Any;
  # What the driver and the shim can be told beside the spec: JSON of the type types.cofferdam.dev/runtime-options/1, see
  # docs/drivers.md. Needs "host".
  checkpoint @12 :Bool;
  # `image` is one that `Task.checkpoint` made. The container is made from its image and gets the files that were changed;
  # of what its process was, its arguments, environment, user, directory and terminal. All else (mounts, network,
  # capabilities, limits …) is as `options` say, and must fit. Needs "host": a checkpoint says itself which mounts and
  # open files its processes have.
  rootfs @13 :Text;
  # A directory of the host, in place of an image: it is itself the root file system, and all of it stays when the
  # container goes. Absolute. Needs "host".
  storage @14 :UInt64;
  # The most bytes that it may have written into its root file system; 0 is no limit. See Snapshot.limit.
}

struct ConfigChange @0xe3a95d70b1c84f26 {
  # One thing that is different in a new image.
  union {
    cmd @0 :List(Text);
    entrypoint @1 :List(Text);
    # The cmd of the image before is gone then, unless it is changed too.
    env @2 :Text;
    # NAME=VALUE.
    workingDir @3 :Text;
    user @4 :Text;
    label @5 :Label;
    expose @6 :Text;
    # PORT[/PROTOCOL]; tcp where none is named.
    volume @7 :Text;
    stopSignal @8 :Text;
  }
}

struct CommitOptions @0xf60b3c8d2a971e54 {
  name @0 :Text;
  # Of the image.
  author @1 :Text;
  message @2 :Text;
  # Both for its history.
  changes @3 :List(ConfigChange);
  # Made in this order.
  noPause @4 :Bool;
  # The container runs on while it is compared: a file that it changes meanwhile may be between two states, and one that
  # shrinks ends the job.
  compression @5 :Text;
  # Of the layer: gzip, zstd or none; empty is gzip.
}

struct CheckpointOptions @0xd4b87e1ca5f60293 {
  name @0 :Text;
  # Of the image that it becomes. already_exists if there is one.
  leaveRunning @1 :Bool;
  # Else the container is killed once the image is stored.
  tcpEstablished @2 :Bool;
  # Keep established TCP connections. Without it a container that has some is refused.
  unixSockets @3 :Bool;
  # Keep unix sockets whose other end is outside the container.
}

struct ContainerInfo @0x8b4de1f5a0c97263 {
  id @0 :Text;
  labels @1 :List(Label);
  image @2 :Text;
  # The name of the image at creation; empty: it has none.
  runtime @3 :Text;
  driver @4 :Text;
  # Of its snapshot.
  snapshotKey @5 :Text;
  # Empty: it has none.
  spec @6 :Common.Any;
  # The OCI runtime spec, JSON.
  created @7 :Common.Time;
  updated @8 :Common.Time;
  task @9 :TaskInfo;
  # Null without a task.
  removeOnExit @10 :Bool;
  stopSignal @11 :UInt32;
  # The number of the signal that asks it to end: its image's at creation, or 15 (SIGTERM).
  logDriver @12 :Text;
  logOptions @13 :List(Label);
  extensions @14 :List(Extension);
  # Lists leave them out, as they do the spec.
  group @15 :Text;
  network @16 :NetworkOptions;
  # What was asked for; null for one of createFromSpec. `unset` is a loopback interface alone.
  rootfs @17 :Text;
  # The directory of the host that is its root file system; empty where it has a snapshot, or a spec that names it.
}

enum Status @0xf5c6270b9ea8d413 {
  creating @0;
  # It is being made.
  created @1;
  # Ready to be started.
  running @2;
  paused @3;
  # Its processes stand still.
  stopped @4;
  # Its first process has ended.
}

struct Exit @0xa861bd9f3c7e0245 {
  status @0 :UInt32;
  # The exit code, or 128 + the signal's number.
  at @1 :Common.Time;
  reason @2 :Text;
  # Empty for an ordinary end; else such as "oom killed", "shim lost", "host restarted".
}

struct TaskInfo @0x9d07e5c2b4f1a836 {
  status @0 :Status;
  pid @1 :UInt32;
  # On the host; 0 when it has ended.
  created @2 :Common.Time;
  started @3 :Common.Time;
  exit @4 :Exit;
  # Null until it has ended.
  terminal @5 :Bool;
  # It has one.
  log @6 :Bool;
  # What it writes is kept.
  execs @7 :List(Text);
  # The ids of its other processes, those too that ended and weren't deleted. Lists leave them out.
  oomed @8 :Common.Time;
  # When it ran out of memory last; 0 is never.
  ooms @9 :UInt64;
  # How often the kernel killed one of its processes for that.
  logLost @10 :UInt64;
  # So many bytes of its output could not be kept.
  network @11 :NetworkStatus;
  # Null where it is not connected to a named network, or not any more: a network is given up when the task ends.
}

interface Containers @0xe1f8b36d7a50c924 {
  create @0 (params :CreateParams) -> (container :Container) $Common.needs("write") $Common.audit("use");
  # Makes the record and the writable snapshot; nothing runs yet. Durable when it returns. already_exists where the id is taken;
  # not_found for the image, the runtime, the network; denied for what needs a right that you lack, or is more than your grant
  # lets a container have; invalid_argument for an option that is wrong. It names `image` or `rootfs`, and not both.

  createFromSpec @1 (params :CreateParams, spec :Data, runtimeOptions :Common.Any) -> (container :Container)
    $Common.needs("host") $Common.audit("use");
  # The same with an OCI runtime spec (JSON) of your own instead of the options. `root` is ours; without an image there is
  # no snapshot, and it is the host's directory at `root.path`. The cgroup is ours where the spec names none
  # (linux.cgroupsPath). `runtimeOptions` are those of `params`, in either place.

  get @2 (id :Text) -> (container :Container) $Common.needs("read");
  # not_found where there is none, or your grant doesn't reach it.

  list @3 (filters :List(Text)) -> (cursor :ContainerCursor) $Common.needs("read");
  # Those that your grant reaches, in the order of their ids. Fields: id, image, runtime.name, labels.<key>.
}

interface ContainerCursor @0xb7a46e0fd9c23581 {
  next @0 (max :UInt16) -> (items :List(ContainerInfo), end :Bool) $Common.needs("read");
}

interface Container @0xcd9183f6e5b7a042 {
  info @0 () -> (info :ContainerInfo) $Common.needs("read");

  createTask @1 (stdio :Common.Stdio, log :Bool, checkpoint :Image) -> (task :Task) $Common.needs("run") $Common.audit("use");
  # Makes the container's first process, ready but not yet started. With `log` its output is kept (`logs`), whatever its streams
  # are. failed_precondition if there is a task already, also one that has ended: delete that. With a `checkpoint` (an image that `Task.checkpoint` made, of the same
  # namespace) the start restores what ran then; until then there is no process, and the pid is 0. That needs "host".

  task @2 () -> (task :Task) $Common.needs("read");
  # The one that is there, running or ended; not_found without one. Its shim is not asked: where that is silent what is asked
  # of the task is unavailable, until it talks again.

  remove @3 (force :Bool) -> () $Common.needs("write") $Common.audit("use");
  # Container, ended task and snapshot, in one commit. A running task is failed_precondition unless forced: then it is
  # killed first.

  removed @4 () -> () $Common.needs("read");
  # Returns when the container is gone, at once where it is.

  logs @5 (follow :Bool, sink :LogSink, options :LogOptions) -> () $Common.needs("read");
  # Writes what was logged, oldest first, into your sink, and ends that; returns behind it. With `follow` it goes on until the
  # task has ended and all that it wrote is written. Without `options` all of it is wanted. A container whose task has no log,
  # or that has written nothing yet, has an empty one. failed_precondition where the log driver keeps nothing that could be
  # read here. After a lost connection go on behind the last record, with its `segment` and `offset`. It is the log of one
  # container, whatever comes to have its name, and ends with not_found where your grant doesn't choose that one any more.

  updateResources @6 (resources :Data) -> () $Common.needs("run") $Common.audit("use");
  # As `Task.update`, with or without a task.

  update @7 (changes :ContainerChanges, fields :List(Text)) -> (info :ContainerInfo) $Common.needs("write") $Common.audit("use");
  # Takes from `changes` the fields that are named: labels, labels.KEY, spec, extensions, extensions.KEY; where an entry
  # is absent it is removed. Without names all of them, and a spec must be there. Everything else about a container never
  # changes. A spec needs "host", counts from the next task on, and keeps its cgroup while there is a task.

  rename @8 (id :Text) -> (container :Container) $Common.needs("write") $Common.audit("use");
  # Gives it another id, and the object of that: this one is of no more use. What it is inside, such as its host name, stays.
  # already_exists where the id is taken; failed_precondition while its task has not ended; an ended one keeps its exit.

  copyOut @9 (path :Text, sink :Common.ByteStream) -> () $Common.needs("run") $Common.audit("use");
  # Writes what is at an absolute path of the container into your sink, as a tar archive, and ends that. At its top is one
  # entry with the path's last name; with "/." at the path's end, what is in the directory. A link is what it is, unless a
  # slash follows. What is mounted beneath the path is left out. While the task runs the path is looked for as its first
  # process would, mounts and all; otherwise in the snapshot, and no task is made until the copy is done.
  # Where the container is removed by force it ends (`cancelled`). failed_precondition while it runs in a user namespace.

  copyIn @10 (path :Text, into :Bool, keepOwners :Bool) -> (sink :Common.ByteStream) $Common.needs("run") $Common.audit("use");
  # Unpacks the tar archive (plain, gzip or zstd) that you write. `path` is a directory that is there; or, without `into`,
  # the one thing at the archive's top takes that name in the directory above, which is there. A directory's place is
  # taken by nothing else, nor does a directory take another thing's. All belongs to root unless `keepOwners`. Device
  # nodes need "host". The sink's `end` returns when all is there, or says why it isn't; what was unpacked by then stays.

  changes @11 () -> (cursor :ChangeCursor) $Common.needs("read");
  # What was changed in its files since it was made; what is mounted in it aside. failed_precondition where its root is a
  # directory of the host.

  commit @12 (options :CommitOptions) -> (job :Job) $Common.needs("run") $Common.audit("use");
  # Makes an image of its own and those changes: one more layer, and a config that is that of its image but for what the
  # options say. Its processes stand still meanwhile, unless the options say otherwise. Layer, config and name appear together. The name may be there already: it stands for the new image then.
}

struct LogOptions @0xd16d6402091dea87 {
  # Which records are wanted; null or zeros are all.
  since @0 :Common.Time;
  until @1 :Common.Time;
  # Nothing older than `since`, and nothing newer than `until`. With `follow` it ends at that time.
  tail @2 :UInt64 = 0xffffffffffffffff;
  # So many lines from the end of what is there, then what follows.
  streams @3 :Streams;
  segment @4 :UInt64;
  offset @5 :UInt64;
  # Where not both are 0: what lies behind the record that named this place, instead of `tail`. For who goes on after a
  # lost connection.

  enum Streams @0xe42f35b618c3be50 {
    both @0;
    stdout @1;
    stderr @2;
  }
}

struct ContainerChanges @0xac5d1f7083e6b92d {
  labels @0 :List(Label);
  spec @1 :Common.Any;
  # An OCI runtime spec, JSON.
  extensions @2 :List(Extension);
  # At most 256 KiB together, for who has them behind the change.
}

struct Extension @0x8e41c0b7d95a62f3 {
  # A payload of yours that is kept with the container.
  name @0 :Text;
  value @1 :Common.Any;
}

interface LogSink @0x91e5a7c80b3fd264 {
  # An object of yours, which the daemon writes the records of a log into.
  write @0 (records :List(LogRecord)) -> stream $Common.needs("none") $Common.audit("none");
  # Some records, in their order, about 128 KiB at once. What you don't answer holds the rest up, and nobody else. An error of
  # yours ends it, and comes out of `Container.logs`.
  end @1 () -> () $Common.needs("none") $Common.audit("none");
  # There is no more.
}

struct LogRecord @0xf2d7b05c6e194a83 {
  time @0 :Common.Time;
  stream @1 :Stream;
  bytes @2 :Data;
  # As they came: not lines. At most 16 KiB.
  lost @3 :Text;
  # Not empty: here something is missing, and this says what and why. There are no bytes then, and `time` may be 0.
  segment @4 :UInt64;
  offset @5 :UInt64;
  # The place behind it, for `LogOptions`.

  enum Stream @0xa3f09e6d5c81b274 {
    stdout @0;
    stderr @1;
  }
}

struct ProcessOptions @0xe7059bd3c2f68a14 {
  args @0 :List(Text);
  env @1 :List(Text);
  # On top of the container's.
  workdir @2 :Text;
  # Empty is the container's.
  user @3 :Text;
  # Empty is the container's.
  terminal @4 :Bool;
  capAdd @5 :List(Text);
  # On top of the container's: needs "host".
  capDrop @6 :List(Text);
  # Of the container's. Names as in `ContainerOptions`.
}

interface Process @0xd06c4fe8a35b7192 {
  start @0 () -> (pid :UInt32) $Common.needs("run") $Common.audit("use");
  # Runs it. The pid is the host's. Where the program can't be run the error's kind is command: not_found where it isn't there,
  # failed_precondition where it is no program for this host or may not be executed.

  wait @1 () -> (exit :Exit) $Common.needs("read");
  # Its end. Before the start, while it runs, or afterwards until it is deleted; as many waiters as you like. It outlives the
  # container's removal under it, but not your connection: after that ask again, or look for /tasks/exit among the events
  # where the container went with its end.

  state @2 () -> (status :Status, pid :UInt32, exit :Exit) $Common.needs("read");
  # How it stands now. `pid` is 0 and `exit` there once it has ended; until then `exit` is null.

  kill @3 (signal :UInt32, all :Bool) -> () $Common.needs("run") $Common.audit("use");
  # not_found if it has ended. `all` signals every process of the container: of one that was run by `exec` that is denied to
  # who may not do it to the task.

  resize @4 (rows :UInt16, columns :UInt16) -> () $Common.needs("run") $Common.audit("none");
  # Gives its terminal another size; failed_precondition where it has none.

  closeStdin @5 () -> () $Common.needs("run") $Common.audit("none");
  # Ends its standard input, as far as that is held here: a FIFO, a stream. To end what you write into a sink, end the sink.

  attach @6 (stdio :Common.Stdio) -> (attachment :Attachment) $Common.needs("run") $Common.audit("use");
  # Follows what it writes from now on, and feeds its input from a descriptor or a FIFO; what else `stdin` may be is null here
  # (who has a stream writes into what `Process.stdin` gives). Several may be attached at once. A process whose pipes were handed over directly (no log, no
  # terminal) can't be attached to: failed_precondition. At most 64 are attached to one process: beyond that, resource_exhausted.

  stdin @7 () -> (sink :Common.ByteStream) $Common.needs("run") $Common.audit("use");
  # A sink for a standard input that was declared as `stream`, and for any terminal, where what is written is typed;
  # failed_precondition for any other. While the process doesn't read, `write` waits. The sink's `end` is the end of the input,
  # but of a terminal's only as far as it came this way.

  delete @8 () -> (exit :Exit) $Common.needs("run") $Common.audit("none");
  # Forgets one that has ended, or was never started, and gives its exit; a running one, and one that is just being started, is
  # failed_precondition (SIGKILL ends the latter once it has started). Of the ended ones
  # of `exec` the last 64 are kept. Of older ones, up to 4,096, the exit is known until the daemon restarts, and nothing else.
}

interface Attachment @0x88b3d5f02e6ac917 {
  # Dropping it detaches.
  wait @0 () -> (reason :Text) $Common.needs("none") $Common.audit("none");
  # Until it ends: "exit" (of the process), "detached" (by you), or "overflow" (you fell 64 KiB behind, or took
  # nothing of what a deleted process had written for too long).
}

interface Task @0xba1f6c70e48d9325 extends (Process) {
  # A container's first process, and the others in it.

  exec @0 (id :Text, options :ProcessOptions, stdio :Common.Stdio) -> (process :Process) $Common.needs("run") $Common.audit("use");
  # Another process in the container, ready but not yet started: call `start`. An empty id: the daemon chooses one.
  # already_exists where the id is taken, invalid_argument where it is the container's. failed_precondition to start one while the
  # container is paused, or being checkpointed. It ends with the first process, and by a grant's end where it was run through one.

  process @1 (id :Text) -> (process :Process) $Common.needs("read");
  # One that was run by `exec`; the first process is the task itself. not_found where there is none, or it was deleted.

  pause @2 () -> () $Common.needs("run") $Common.audit("use");
  # Freezes all its processes; returns when they stand still.

  resume @3 () -> () $Common.needs("run") $Common.audit("use");
  # Lets them go on.

  pids @4 () -> (pids :List(UInt32)) $Common.needs("read");
  # All its processes, by their pids on the host.

  update @5 (resources :Data) -> () $Common.needs("run") $Common.audit("use");
  # Changes limits: `linux.resources` of the OCI runtime spec (JSON). What it doesn't name stays as it is; a list of
  # devices replaces the one before; -1 is no limit. In force when it returns. All of it is done or nothing. It is kept in the
  # container's spec. deadline_exceeded: the shim didn't answer; it may do it yet, and the spec says so then (but
  # not if the daemon ends before: what is in force is what `metrics` says, and another `update` sets both). Of a task that has
  # ended, the spec alone changes. Devices, `unified` and realtime need "host"; `denied` is more than the grant lets it have that
  # made the container.

  metrics @6 () -> (metrics :Metrics) $Common.needs("read");
  # What it uses and has used; until it is deleted. failed_precondition where its cgroup is gone before.

  processes @7 () -> (processes :List(ProcessInfo)) $Common.needs("read");
  # The processes of the container, 4,096 at most, with the execs that they belong to.

  checkpoint @8 (options :CheckpointOptions) -> (job :Job) $Common.needs("run") $Common.audit("use");
  # Writes what runs in the container, with its changed files, into an image of a new name. It stands still meanwhile.
  # Needs criu on the daemon's host.
}

struct ProcessInfo @0xb8e1427a96fd053c {
  pid @0 :UInt32;
  # On the host.
  innerPid @1 :UInt32;
  # In the container's own pid namespace.
  parent @2 :UInt32;
  # On the host; 0 where that is none of the container's.
  first @3 :Bool;
  # The container's first process.
  exec @4 :Text;
  # The id of the exec whose first process it is; empty for others.
  uid @5 :UInt32;
  command @6 :List(Text);
  # Its arguments, of which 4 KiB at most; or its name alone, where it has none.
  state @7 :Text;
  # As ps(1) has it: R, S, D, T, Z.
  started @8 :Common.Time;
  cpu @9 :UInt64;
  # Processor time in nanoseconds.
  resident @10 :UInt64;
  # Bytes.
}
