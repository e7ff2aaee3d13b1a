@0xc8a7d2e15f4b9036;
# Images: names for manifests, and the ways to get them.

using Common = import "common.capnp";
using Label = Common.Label;
using Job = import "job.capnp".Job;

struct ImageInfo @0xe4b16c9d03a8f257 {
  name @0 :Text;
  labels @1 :List(Label);
  target @2 :Common.Descriptor;
  # What the name stands for: a manifest or an index.
  created @3 :Common.Time;
  updated @4 :Common.Time;
}

struct ImageDetail @0x92f3b8e6a1c7d405 {
  # An image resolved for one platform.
  info @0 :ImageInfo;
  manifest @1 :Common.Descriptor;
  config @2 :Data;
  # The image config, JSON of the OCI image-spec, as it is stored.
  layers @3 :List(Common.Descriptor);
  chainId @4 :Text;
  # Of all layers: the name of the snapshot that containers start from.
  unpacked @5 :Bool;
  # In the default snapshot driver.
  size @6 :UInt64;
  # Of manifest, config and layers as stored.
  platform @7 :Common.Platform;
}

enum PullPolicy @0xbd0a4c7e92f86135 {
  never @0;
  missing @1;
  always @2;
}

struct PullOptions @0xa79ce5d138fb0264 {
  reference @0 :Text;
  # host[:port]/path[:tag][@digest]; the name of the image afterwards.
  platform @1 :Text;
  # os/arch[/variant]; empty is the host's.
  plainHttp @2 :Bool;
  # Only http. A registry on localhost is always asked over http first.
  user @3 :Text;
  secret @4 :Text;
  # For basic authentication, or to get a token. Sent to the registry's own host alone, and never logged.
  driver @5 :Text;
  # Where to unpack; empty is the default driver.
  fetchOnly @6 :Bool;
  # Don't unpack.
  caCertificates @7 :Data;
  # PEM; trusted besides the host's own.
}

struct ImportOptions @0xdc51b90e7f3a2846 {
  name @0 :Text;
  # Of the image, where the archive names none; for a root file system it must be given.
  format @1 :Format;
  platform @2 :Text;
  driver @3 :Text;
  noUnpack @4 :Bool;
  command @5 :List(Text);
  # For a root file system: the command of the image.

  enum Format @0x87e0f4b6c32d195a {
    detect @0;
    # An OCI layout or a docker archive, packed or not.
    rootfs @1;
    # A root file system: it becomes an image of one layer.
  }
}

interface Images @0xb6e31f5c80d4a972 {
  get @0 (name :Text) -> (image :Image) $Common.needs("read");

  obtain @1 (options :PullOptions, policy :PullPolicy) -> (image :Image) $Common.needs("write") $Common.audit("use");
  # The image, pulled first if the policy says so; returns when it is there and unpacked. Pipeline on it.

  pull @2 (options :PullOptions) -> (job :Job) $Common.needs("write") $Common.audit("use");

  importFd @3 (options :ImportOptions, source :Common.Fd) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # From a directory, a file or a pipe of yours. The name of the image or images comes from `Job.wait`.

  import @4 (options :ImportOptions) -> (job :Job, sink :Common.ByteStream) $Common.needs("write") $Common.audit("use");
  # The twin: write the archive into `sink`.

  list @5 (filters :List(Text)) -> (cursor :ImageCursor) $Common.needs("read");
  # Fields: name, target.digest, target.mediatype, labels.<key>.

  remove @6 (name :Text) -> () $Common.needs("write") $Common.audit("use");
  # Containers made from it go on.
}

interface ImageCursor @0xf3c2a8d94b6017e5 {
  next @0 (max :UInt16) -> (items :List(ImageInfo), end :Bool) $Common.needs("read");
}

interface Image @0x9e84d7a02b5cf163 {
  info @0 () -> (info :ImageInfo) $Common.needs("read");

  detail @1 (platform :Text) -> (detail :ImageDetail) $Common.needs("read");
  # Empty is the host's platform.

  unpack @2 (platform :Text, driver :Text) -> (chainId :Text) $Common.needs("write") $Common.audit("none");

  exportFd @3 (target :Common.Fd) -> (job :Job) $Common.needs("read");
  # Writes the image as an OCI layout in a tar archive into a file or a pipe of yours: what its name stands for, with all
  # that it leads to and that is here. A checkpoint goes with the image that its container was made from.

  export @4 (sink :Common.ByteStream) -> (job :Job) $Common.needs("read");
  # The twin: the archive is written into your sink.
}
