@0xc8a7d2e15f4b9036;
# Images: names for manifests, and the ways to get them.
#
# An image's whole name is host[:port]/path with :tag or @digest behind it. With @digest it stands for that and nothing else: whatever
# would give it to something else is invalid_argument. Methods take short ones too: "busybox" is
# docker.io/library/busybox:latest, unless there is an image of the short name itself.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

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
  # In the default snapshot driver: a container can be made without more ado.
  size @6 :UInt64;
  # Of manifest, config and layers as stored.
  platform @7 :Common.Platform;
}

struct PlatformState @0xc56b72fd40ac473a {
  # What is here of an image for one platform.
  platform @0 :Common.Platform;
  manifest @1 :Common.Descriptor;
  # Without a digest where it isn't here.
  required @2 :UInt32;
  # How many blobs it needs: manifest, config and layers.
  missing @3 :List(Common.Descriptor);
  # Those of them that aren't here.
  size @4 :UInt64;
  # Of all that it needs.
  drivers @5 :List(Text);
  # The snapshot drivers into which it is unpacked.
}

struct ImageReport @0xc5916f5961e0490d {
  # What is here of an image, and who uses it.
  info @0 :ImageInfo;
  platforms @1 :List(PlatformState);
  # In the order of the index. Nothing is here where its own document isn't: then none can be told.
  users @2 :List(Text);
  # Containers that were made from it, by its name; the first 256.
  userCount @3 :UInt64;
  names @4 :List(Text);
  # Other images that stand for the same; the first 256.
  damage @5 :Text;
  # Why the platforms can't be told; empty where they can.
}

struct PruneOptions @0xe5fcc31dd1f358b8 {
  filters @0 :List(Text);
  # As in `Images.list`: only these are looked at.
  unchanged @1 :UInt64;
  # Only those that were last changed so long ago, in nanoseconds.
  rehearse @2 :Bool;
  # Say what would go, and remove nothing.
}

struct PrunedImage @0xde07691486960a58 {
  info @0 :ImageInfo;
  # Of one that is gone its name, times and target alone.
  removed @1 :Bool;
  # With `rehearse`: it would be.
  why @2 :Text;
  # Why it goes or stays, in a sentence.
}

struct PruneReport @0xf6ffdbfcd69e086b {
  removed @0 :UInt64;
  kept @1 :UInt64;
  blobs @2 :UInt64;
  # What nothing keeps any more when they are gone: the next collection removes it.
  snapshots @3 :UInt64;
  bytes @4 :UInt64;
}

enum PullPolicy @0xbd0a4c7e92f86135 {
  never @0;
  # It must be here.
  missing @1;
  # Pulled if it isn't here.
  always @2;
  # Pulled, whether it is here or not; the name stands for what the registry has.
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
  clientCertificate @8 :Data;
  clientKey @9 :Data;
  # PEM, both or neither: what the registry's own host is shown.
  platforms @10 :List(Text);
  # Fetched for these too.
  allPlatforms @11 :Bool;
  # Fetched for all that there are. Only what runs here is unpacked.
  rate @12 :UInt64;
  # Bytes in a second at most; 0: no limit but the daemon's own.
  zstdWindow @13 :UInt64;
  # A zstd layer that needs more memory than this to be read, in bytes, is refused; 0: 32 MiB.
  schema1 @14 :Bool;
  # Manifests of docker's first schema are taken too, and become OCI ones. They can't be told from changed ones but by digest,
  # which goes behind a tag then: what is made has another one, and is called by the tag.
}

struct PushOptions @0xa3e95c1f7d20b846 {
  reference @0 :Text;
  # host[:port]/path[:tag]: where to, and what to call it there. Empty: the image's own name. With @digest, which must be its
  # own, it gets no name there.
  platform @1 :Text;
  # The image for one platform alone; empty: all that the name stands for, of which all must be here.
  plainHttp @2 :Bool;
  user @3 :Text;
  secret @4 :Text;
  caCertificates @5 :Data;
  # As in `PullOptions`.
  chunk @6 :UInt64;
  # Bytes of a blob in one request; 0: all.
  mountFrom @7 :List(Text);
  # Repositories (paths) of the same registry that may have its blobs already. Those that they were pulled from are known.
  foreign @8 :Bool;
  # Layers too that aren't meant to be distributed.
  clientCertificate @9 :Data;
  clientKey @10 :Data;
  # As in `PullOptions`.
}

struct ExportOptions @0x9d4c08b7e1f253a6 {
  names @0 :List(Text);
  # 1 to 256 images.
  platform @1 :Text;
  # The images for one platform alone; empty: all that the names stand for, as far as it is here.
}

struct ImportOptions @0xdc51b90e7f3a2846 {
  name @0 :Text;
  # Of the image, where the archive has one, which needn't name it then. Of several: a name without tag and digest, for those that
  # have a tag alone. For a root file system it must be given.
  format @1 :Format;
  platform @2 :Text;
  # Which of an image for several platforms is unpacked, and what a root file system is for: os/arch[/variant]; empty is the
  # host's.
  driver @3 :Text;
  # Where to unpack; empty is the default driver.
  noUnpack @4 :Bool;
  # Only store. Then it may be any artifact.
  command @5 :List(Text);
  # For a root file system: the command of the image.
  changes @6 :List(Text);
  # For a root file system: further lines of a Dockerfile, as in `ENV A=b`: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER,
  # VOLUME, WORKDIR.
  created @7 :Common.Time;
  # When it says that it was made; 0: now. With a time the same files give the same image.
  author @8 :Text;
  comment @9 :Text;

  enum Format @0x87e0f4b6c32d195a {
    detect @0;
    # An OCI layout or a docker archive, packed or not.
    rootfs @1;
    # A root file system, as a directory (`importFd` alone) or a tar archive: it becomes an image of one layer.
  }
}

struct RouteStep @0xbf06451169e2e0d3 {
  # A host that is asked for an image.
  host @0 :Text;
  # With its scheme and port, and the path before the repository: https://mirror:5000/v2.
  capabilities @1 :List(Text);
  # pull, resolve, push.
  source @2 :Text;
  # The file that says so; empty: nobody does, it is the host that the name says.
  credential @3 :Text;
  # Where what it is shown comes from: stored, file (a header in `source`) or none; of a report for who calls, as coffer makes it,
  # call and docker-config too, which come first. Never the secret itself.
  proxy @4 :Text;
  # Without user and password; empty: none.
  tls @5 :List(Text);
  # Files of certificates.
  when @6 :Text;
  # In a sentence: what must have happened before it is asked.
  unverified @7 :Bool;
  # Whoever answers is believed, whatever certificate he has (skip_verify).
  own @8 :Bool;
  # It is the registry that the name says: what a call has for that (`user`, `secret`, certificates) goes to such hosts alone.
}

struct RouteReport @0x936fd4cee83a5342 {
  # The way of a pull.
  reference @0 :Text;
  # The whole name.
  steps @1 :List(RouteStep);
  # In the order in which they are asked.
  files @2 :List(Text);
  # Looked at for it, there or not.
  trust @3 :Text;
  # The rule that says what must be signed, in a sentence.
}

enum Verdict @0xde6ff96fc0743601 {
  take @0;
  skip @1;
  # Neither this nor what it leads to.
  stop @2;
  # Nor anything after it.
}

interface Chooser @0xf26caf12103d5907 {
  # Yours: asked about everything that an image consists of, from the top.
  look @0 (descriptor :Common.Descriptor, depth :UInt16) -> (verdict :Verdict) $Common.needs("none") $Common.audit("none");
  # The manifest or index that the name stands for has the depth 0. What isn't answered within 10 s ends the pull.
}

struct ArtifactOptions @0x9adaea576492fdb2 {
  # An artifact as in OCI image-spec 1.1, "Guidelines for Artifact Usage".
  name @0 :Text;
  # host[:port]/path:tag, as of an image.
  artifactType @1 :Text;
  # A media type. Needed where `config` has none.
  config @2 :Common.Descriptor;
  # Null: the empty one.
  layers @3 :List(Common.Descriptor);
  # Its files, which must be here; the annotation org.opencontainers.image.title is a file's name.
  subject @4 :Common.Descriptor;
  # What it belongs to, which needn't be here; null: nothing.
  annotations @5 :List(Label);
}

struct ConvertOptions @0xf1d56193efd2bce0 {
  name @0 :Text;
  # Of the new image; the old one stays.
  compression @1 :Text;
  # gzip, zstd, none, or empty: as they are.
  oci @2 :Bool;
  # Docker's media types become OCI's.
  platform @3 :Text;
  # That alone; empty: all that is here.
}

interface Images @0xb6e31f5c80d4a972 {
  get @0 (name :Text) -> (image :Image) $Common.needs("read");
  # not_found where it isn't here.

  obtain @1 (options :PullOptions, policy :PullPolicy) -> (image :Image) $Common.needs("write") $Common.audit("use");
  # The image, pulled first if the policy says so; returns when it is there and unpacked. Pipeline on it. not_found with the
  # policy `never`, and where the registry hasn't got it; `denied` where it would have to be pulled and your grant isn't for
  # that, or where the registry says so; unavailable where that can't be reached. Dropping the call doesn't end the pull.

  pull @2 (options :PullOptions) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # The same as a job, whose progress can be watched. Its errors come out of `Job.wait`.

  importFd @3 (options :ImportOptions, source :Common.Fd) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # From a directory, a file or a pipe of yours. The name of the image or images comes from `Job.wait`. The daemon reads what is
  # below a directory by its own rights: that needs the right `host` as well, and without it `denied` says to send an archive.

  import @4 (options :ImportOptions) -> (job :Job, sink :Common.ByteStream) $Common.needs("write") $Common.audit("use");
  # The twin: write the archive into `sink`, and end it. That returns when the archive is on its way; what became of it says
  # `Job.wait`.

  list @5 (filters :List(Text)) -> (cursor :ImageCursor) $Common.needs("read");
  # Fields: name, target.digest, target.mediatype, labels.<key>.

  remove @6 (name :Text) -> () $Common.needs("write") $Common.audit("use");
  # Containers made from it go on. not_found where it isn't here. What nothing else keeps of it is collected.

  tag @7 (source :Text, name :Text, replace :Bool) -> (image :Image) $Common.needs("write") $Common.audit("use");
  # Gives what `source` stands for another name, with its labels. already_exists where that is taken, by something else and without
  # `replace`.

  prune @8 (options :PruneOptions) -> (report :PruneReport, cursor :PrunedImageCursor) $Common.needs("write") $Common.audit("use");
  # Removes images that no container was made from, in one commit: one that is made meanwhile keeps its image. The cursor lists
  # what was looked at.

  exportFd @9 (options :ExportOptions, target :Common.Fd) -> (job :Job) $Common.needs("read");
  # As `Image.exportFd`, of several images at once: what they share is there once.

  export @10 (options :ExportOptions, sink :Common.ByteStream) -> (job :Job) $Common.needs("read");
  # The twin.

  explainRoute @11 (reference :Text) -> (report :RouteReport) $Common.needs("read");
  # Which hosts a pull would ask, and how. Asks nobody. failed_precondition names the file and line in the daemon's table of hosts
  # that can't be read.

  fetch @12 (options :PullOptions, chooser :Chooser) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # As `pull`, of what the chooser takes. What is incomplete by that is never unpacked.

  createArtifact @13 (options :ArtifactOptions) -> (image :Image) $Common.needs("write") $Common.audit("use");
  # Makes a manifest of what is in `Content` already, and names it. `Image.push` sends it, `pull` with `fetchOnly` gets one.

  referrers @14 (options :PullOptions, artifactType :Text) -> (cursor :DescriptorCursor) $Common.needs("write") $Common.audit("use");
  # What a registry has that names this as its subject, of one type or of all: by its referrers API (OCI distribution-spec 1.1),
  # or by the tag that stands for it.
}

interface DescriptorCursor @0xc59d994ccf61e839 {
  next @0 (max :UInt16) -> (items :List(Common.Descriptor), end :Bool) $Common.needs("read");
}

interface PrunedImageCursor @0x81b411a2f772d65d {
  next @0 (max :UInt16) -> (items :List(PrunedImage), end :Bool) $Common.needs("write") $Common.audit("none");
}

interface ImageCursor @0xf3c2a8d94b6017e5 {
  next @0 (max :UInt16) -> (items :List(ImageInfo), end :Bool) $Common.needs("read");
}

interface Image @0x9e84d7a02b5cf163 {
  info @0 () -> (info :ImageInfo) $Common.needs("read");

  detail @1 (platform :Text) -> (detail :ImageDetail) $Common.needs("read");
  # Empty is the host's platform. not_found where there is none for it, or not all of it is here.

  unpack @2 (platform :Text, driver :Text) -> (chainId :Text) $Common.needs("write") $Common.audit("none");
  # Makes its layers snapshots of a driver; empty: the host's platform, the default driver. Returns when it is done, with the key
  # of the topmost. It is a job, which goes on where the call ends before it.

  exportFd @3 (target :Common.Fd) -> (job :Job) $Common.needs("read");
  # Writes the image as an OCI layout in a tar archive into a file or a pipe of yours: what its name stands for, with all
  # that it leads to and that is here. A checkpoint goes with the image that its container was made from. `docker load` reads the archive
  # too, where the image for the host's platform is here. The same images give the same bytes.

  export @4 (sink :Common.ByteStream) -> (job :Job) $Common.needs("read");
  # The twin: the archive is written into your sink, which is ended behind it. Whether it is whole says `Job.wait`.

  update @5 (labels :List(Label), fields :List(Text)) -> (info :ImageInfo) $Common.needs("write") $Common.audit("none");
  # Fields: labels, labels.KEY. A label that says what the collector keeps counts here as in containerd: of those that name
  # snapshots.

  report @6 (others :Bool) -> (report :ImageReport) $Common.needs("read");
  # All platforms; none of the blobs is read but manifests, indexes and configs. With `others` users, userCount and names too, for which
  # all containers and images of the namespace are looked at.

  push @7 (options :PushOptions) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # Sends it to a registry: blobs that this has not, then manifests, the name last. What the registry has or can take over from
  # another of its repositories isn't sent. failed_precondition where a part isn't here; `denied` where the registry says so.

  convert @8 (options :ConvertOptions) -> (job :Job) $Common.needs("write") $Common.audit("use");
  # Makes another image of it that holds the same files, packed otherwise.

  startUnpack @9 (platform :Text, driver :Text) -> (job :Job) $Common.needs("write") $Common.audit("none");
  # `unpack` as a job, whose progress can be watched. Its errors come out of `Job.wait`.
}
