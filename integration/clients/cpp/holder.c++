// What the holder of two grants does, and what is refused to him; the same as ../python/holder.py.
//
//     COFFERDAM_DEPLOY=TOKEN COFFERDAM_LOGS=TOKEN holder SOCKET IMAGE

#include <csignal>
#include <iostream>
#include <map>

#include "cofferdam.h"

using namespace cofferdam;

namespace {

constexpr const char* SCRIPT = "echo hello; echo oops >&2; echo bye; exit 7";

// The most that a stream takes at once.
constexpr size_t CHUNK = 256 << 10;

const char* name(Status status) {
  switch (status) {
    case Status::CREATING: return "creating";
    case Status::CREATED: return "created";
    case Status::RUNNING: return "running";
    case Status::PAUSED: return "paused";
    case Status::STOPPED: return "stopped";
  }
  return "unknown";
}

void say(const std::string& line) { std::cout << line << std::endl; }

// Takes the records of a log, and gives each to a function.
class Records final : public LogSink::Server {
 public:
  explicit Records(kj::Function<void(LogRecord::Reader)> take) : take(kj::mv(take)) {}

  kj::Promise<void> write(WriteContext context) override {
    for (auto record : context.getParams().getRecords()) take(record);
    return kj::READY_NOW;
  }
  kj::Promise<void> end(EndContext) override { return kj::READY_NOW; }

 private:
  kj::Function<void(LogRecord::Reader)> take;
};

// Takes a stream of bytes that the daemon writes.
class Bytes final : public ByteStream::Server {
 public:
  Bytes(std::string& all, kj::Own<kj::PromiseFulfiller<void>> ended) : all(all), ended(kj::mv(ended)) {}

  kj::Promise<void> write(WriteContext context) override {
    auto chunk = context.getParams().getChunk().asChars();
    all.append(chunk.begin(), chunk.size());
    return kj::READY_NOW;
  }
  kj::Promise<void> end(EndContext) override {
    ended->fulfill();
    return kj::READY_NOW;
  }

 private:
  std::string& all;
  kj::Own<kj::PromiseFulfiller<void>> ended;
};

std::string text(capnp::Data::Reader bytes) { return std::string(bytes.asChars().begin(), bytes.size()); }

// The names in a tar archive (tar(5)), each behind a blank.
std::string names(const std::string& archive) {
  std::string all;
  for (size_t at = 0; at + 512 <= archive.size() && archive[at + 257] == 'u';) {
    // What is said of the next entry is none itself.
    char kind = archive[at + 156];
    if (kind != 'x' && kind != 'g') all += std::string(" ") + archive.substr(at, 100).c_str();
    size_t size = std::strtoull(archive.substr(at + 124, 12).c_str(), nullptr, 8);
    at += 512 + (size + 511) / 512 * 512;
  }
  return all;
}

void fill(CreateParams::Builder params, Image::Client image, kj::StringPtr id) {
  params.setId(id);
  params.setImage(image);
  auto args = params.initOptions().initArgs(3);
  args.set(0, "sh");
  args.set(1, "-c");
  args.set(2, SCRIPT);
}

class Holder {
 public:
  Holder(kj::StringPtr socket, kj::StringPtr token)
      : client(socket, token), scope(client.scope()), space(client.open()),
        containers(space.containersRequest().send().getContainers()) {
    std::string line = "holds";
    for (auto facet : client.grant().getGrant().getOptions().getFacets()) line += std::string(" ") + facet.cStr();
    say(line);
  }

  // Tells how a call is refused; those before it lead to it.
  template <typename Promise>
  void refused(const char* what, Promise&& promise) {
    KJ_IF_MAYBE(error, failure(promise, scope)) {
      say(error->code + " " + what);
    } else {
      say(std::string("ALLOWED ") + what);
    }
  }

  Container::Client container(kj::StringPtr id) {
    auto request = containers.getRequest();
    request.setId(id);
    return request.send().getContainer();
  }

  capnp::RemotePromise<Container::LogsResults> logs(Container::Client of, bool follow,
                                                    kj::Function<void(LogRecord::Reader)> take) {
    auto request = of.logsRequest();
    request.setFollow(follow);
    request.setSink(kj::heap<Records>(kj::mv(take)));
    return request.send();
  }

  auto exec(Container::Client in) {
    auto request = in.taskRequest().send().getTask().execRequest();
    request.initOptions().initArgs(1).set(0, "id");
    return request.send();
  }

 protected:
  Client client;
  kj::WaitScope& scope;
  Namespace::Client space;
  Containers::Client containers;
};

class Deployer : public Holder {
 public:
  Deployer(kj::StringPtr socket, kj::StringPtr token, kj::StringPtr reference)
      : Holder(socket, token), images(space.imagesRequest().send().getImages()), image(find(reference)) {}

  // Runs a container to its end, with all that can be sent at once sent at once.
  Container::Client run() {
    auto create = containers.createRequest();
    fill(create.initParams(), image, "mine");
    auto made = create.send().getContainer();
    auto createTask = made.createTaskRequest();
    createTask.setLog(true);
    auto task = createTask.send().getTask();
    task.startRequest().send().wait(scope);

    std::map<LogRecord::Stream, std::string> written;
    logs(made, true, [&](LogRecord::Reader record) {
      written[record.getStream()] += text(record.getBytes());
    }).wait(scope);
    for (auto& [stream, all] : written) {
      const char* of = stream == LogRecord::Stream::STDOUT ? "stdout " : "stderr ";
      for (size_t from = 0, to; (to = all.find('\n', from)) != std::string::npos; from = to + 1) {
        say(std::string("log ") + of + all.substr(from, to - from));
      }
    }
    auto exit = task.waitRequest().send().wait(scope);
    say("exit " + std::to_string(exit.getExit().getStatus()));
    list();

    std::string copied;
    auto copy = made.copyOutRequest();
    copy.setPath("/etc/passwd");
    copy.setSink(kj::heap<Bytes>(copied, kj::newPromiseAndFulfiller<void>().fulfiller));
    copy.send().wait(scope);
    say("copied" + names(copied));
    return made;
  }

  // Writes what a process reads, and reads what it writes: what a client does that passes no descriptors.
  void talk() {
    auto create = containers.createRequest();
    fill(create.initParams(), image, "talk");
    create.getParams().getOptions().initArgs(1).set(0, "cat");
    create.getParams().setRemoveOnExit(true);
    auto made = create.send().getContainer();
    std::string heard;
    auto ended = kj::newPromiseAndFulfiller<void>();
    auto createTask = made.createTaskRequest();
    createTask.initStdio().initStdin().setStream();
    createTask.getStdio().initStdout().setStream(kj::heap<Bytes>(heard, kj::mv(ended.fulfiller)));
    auto task = createTask.send().getTask();
    task.startRequest().send().wait(scope);

    std::string all;
    while (all.size() < 400'000) all += "ping";
    auto sink = task.stdinRequest().send().getSink();
    for (size_t at = 0; at < all.size(); at += CHUNK) {
      auto write = sink.writeRequest();
      write.setChunk(kj::StringPtr(all).slice(at).asBytes().slice(0, kj::min(CHUNK, all.size() - at)));
      write.send().wait(scope);
    }
    sink.endRequest().send().wait(scope);
    ended.promise.wait(scope);
    say("heard " + std::to_string(heard.size()) + " " + heard.substr(0, 4));
    made.removedRequest().send().wait(scope);
  }

  void beyond(Container::Client mine) {
    auto namespaces = client.root.namespacesRequest().send().getNamespaces();
    auto other = namespaces.getRequest();
    other.setName("elsewhere");
    refused("another namespace", other.send());
    auto create = namespaces.createRequest();
    create.setName("mine");
    refused("a new namespace", create.send());
    refused("the daemon's state", client.root.systemRequest().send());
    refused("the collector", client.root.collectorRequest().send());
    refused("grants", space.grantsRequest().send().getGrants().listRequest().send());
    refused("events", space.eventsRequest().send().getEvents().subscribeRequest().send());
    refused("content", space.contentRequest().send().getContent().listRequest().send());
    refused("snapshots", space.snapshotsRequest().send().getSnapshots().listRequest().send());
    refused("leases", space.leasesRequest().send().getLeases().listRequest().send());
    refused("jobs", space.jobsRequest().send().getJobs().listRequest().send());

    auto second = images.getRequest();
    second.setName("test/second:latest");
    refused("another image", second.send());
    auto pull = images.pullRequest();
    pull.initOptions().setReference("test/busybox:latest");
    refused("a pull", pull.send());
    auto import = images.importRequest();
    import.initOptions().setName("test/mine:latest");
    import.getOptions().setFormat(ImportOptions::Format::ROOTFS);
    refused("an import", import.send());
    auto remove = images.removeRequest();
    remove.setName("test/busybox:latest");
    refused("an image's end", remove.send());

    refused("a sibling's log", logs(container("web"), false, [](LogRecord::Reader) {}));
    refused("a process in a sibling", exec(container("web")));

    more("a mount of the host's", [](ContainerOptions::Builder options) {
      auto mount = options.initMounts(1)[0];
      mount.setTarget("/mnt");
      mount.setHostPath("/etc");
      mount.setReadOnly(true);
    });
    more("the host's network", [](ContainerOptions::Builder options) { options.initNetworking().setHost(); });
    more("a capability", [](ContainerOptions::Builder options) { options.initCapAdd(1).set(0, "SYS_ADMIN"); });
    more("more memory", [](ContainerOptions::Builder options) { options.setMemory(65 << 20); });
    auto spec = containers.createFromSpecRequest();
    fill(spec.initParams(), image, "more");
    spec.setSpec(kj::StringPtr(R"({"ociVersion":"1.0.2"})").asBytes());
    refused("a spec", spec.send());
    mine.taskRequest().send().getTask().deleteRequest().send().wait(scope);
    auto again = mine.createTaskRequest();
    again.initStdio().initStdout().setFile("/etc/motd");
    refused("a file of the host's", again.send());
    auto commit = mine.commitRequest();
    commit.initOptions().setName("test/mine:latest");
    refused("an image of it", commit.send());

    mine.removeRequest().send().wait(scope);
  }

 private:
  Image::Client find(kj::StringPtr reference) {
    auto request = images.getRequest();
    request.setName(reference);
    return request.send().getImage();
  }

  void list() {
    auto request = containers.listRequest();
    auto filters = request.initFilters(2);
    filters.set(0, "id==mine");
    filters.set(1, "id==web");
    auto cursor = request.send().getCursor();
    for (bool end = false; !end;) {
      auto next = cursor.nextRequest();
      next.setMax(100);
      auto block = next.send().wait(scope);
      for (auto info : block.getItems()) {
        say(std::string("there is ") + info.getId().cStr() + " " + name(info.getTask().getStatus()));
      }
      end = block.getEnd();
    }
  }

  void more(const char* what, kj::Function<void(ContainerOptions::Builder)> change) {
    auto request = containers.createRequest();
    fill(request.initParams(), image, "more");
    change(request.getParams().getOptions());
    refused(what, request.send());
  }

  Images::Client images;
  Image::Client image;
};

class Reader : public Holder {
 public:
  using Holder::Holder;

  void beyond() {
    auto sibling = container("web");
    auto db = containers.getRequest();
    db.setId("db");
    refused("another container", db.send());
    refused("what it is", sibling.infoRequest().send());
    refused("its task", sibling.taskRequest().send());
    auto kill = sibling.taskRequest().send().getTask().killRequest();
    kill.setSignal(SIGKILL);
    kill.setAll(true);
    refused("its end", kill.send());
    refused("a process in it", exec(sibling));
    auto copy = sibling.copyOutRequest();
    copy.setPath("/etc/passwd");
    refused("its files", copy.send());
    auto remove = sibling.removeRequest();
    remove.setForce(true);
    refused("its removal", remove.send());
    auto create = containers.createRequest();
    create.initParams().setId("more");
    refused("a container", create.send());
  }

  // Follows the sibling's log until that is refused.
  void follow() {
    auto sibling = container("web");
    bool heard = false;
    auto ended = logs(sibling, true, [&](LogRecord::Reader record) {
      auto line = text(record.getBytes());
      if (!heard) say("following " + line.substr(0, line.find('\n')));
      heard = true;
    });
    refused("the log that is followed", ended);
    refused("the log once more", logs(sibling, false, [](LogRecord::Reader) {}));
  }
};

kj::StringPtr variable(const char* name) {
  const char* value = std::getenv(name);
  KJ_REQUIRE(value != nullptr, "is not set", name);
  return value;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "give the daemon's socket and an image" << std::endl;
    return 2;
  }
  kj::StringPtr socket = arguments[1];
  auto told = kj::runCatchingExceptions([&]() {
    Deployer deployer(socket, variable("COFFERDAM_DEPLOY"), arguments[2]);
    auto mine = deployer.run();
    deployer.talk();
    deployer.beyond(mine);
    Reader reader(socket, variable("COFFERDAM_LOGS"));
    reader.beyond();
    reader.follow();
  });
  KJ_IF_MAYBE(exception, told) {
    auto error = Error::of(*exception);
    std::cerr << error.code << " " << error.kind << " " << error.id << ": " << error.message << std::endl;
    return 1;
  }
  return 0;
}
