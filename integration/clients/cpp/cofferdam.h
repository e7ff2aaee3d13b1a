// A client of Cofferdam in C++: what it takes beside the code that `capnp compile` makes of the schema.
#pragma once

#include <cstdlib>
#include <string>

#include <capnp/ez-rpc.h>
#include <kj/function.h>

#include "gate.capnp.h"

namespace cofferdam {

// What the daemon says went wrong (common.capnp): act on the code, show the sentence.
struct Error {
  std::string code, kind, id, message;

  // Reads `cofferdam:<code> <kind>/<id>: <sentence>`; what has another form came from a library.
  static Error of(const kj::Exception& exception) {
    std::string reason = exception.getDescription().cStr();
    const std::string remote = "remote exception: ", ours = "cofferdam:";
    while (reason.rfind(remote, 0) == 0) reason.erase(0, remote.size());
    size_t space = reason.find(' '), colon = reason.find(": ");
    size_t slash = space == std::string::npos ? space : reason.find('/', space);
    if (reason.rfind(ours, 0) == 0 && colon != std::string::npos && slash < colon) {
      return {reason.substr(ours.size(), space - ours.size()), reason.substr(space + 1, slash - space - 1),
              decoded(reason.substr(slash + 1, colon - slash - 1)), reason.substr(colon + 2)};
    }
    switch (exception.getType()) {
      case kj::Exception::Type::DISCONNECTED: return {"unavailable", "rpc", "", reason};
      case kj::Exception::Type::UNIMPLEMENTED: return {"unimplemented", "rpc", "", reason};
      default: return {"internal", "rpc", "", reason};
    }
  }

 private:
  static std::string decoded(const std::string& text) {
    std::string plain;
    for (size_t at = 0; at < text.size(); at++) {
      if (text[at] == '%' && at + 2 < text.size()) {
        plain += char(std::strtoul(text.substr(at + 1, 2).c_str(), nullptr, 16));
        at += 2;
      } else {
        plain += text[at];
      }
    }
    return plain;
  }
};

// How a call fails, waited for; none where it doesn't.
template <typename Promise>
kj::Maybe<Error> failure(Promise&& promise, kj::WaitScope& scope) {
  KJ_IF_MAYBE(exception, kj::runCatchingExceptions([&]() { promise.wait(scope); })) {
    return Error::of(*exception);
  }
  return nullptr;
}

// A connection that has what the grant of a token gives, and nothing else.
class Client {
 public:
  Client(kj::StringPtr socket, kj::StringPtr token)
      : rpc(kj::str("unix:", socket)), restored(restore(rpc.getMain<Gate>(), token)), root(restored.getRoot()) {}

  kj::WaitScope& scope() { return rpc.getWaitScope(); }

  // The namespace of the grant; each call goes out at once, behind those whose answers have yet to come.
  Namespace::Client open() {
    auto get = root.namespacesRequest().send().getNamespaces().getRequest();
    return get.send().getNamespace();
  }

  // What the grant says; asked for once.
  capnp::Response<Gate::RestoreResults> grant() { return restored.wait(scope()); }

 private:
  static capnp::RemotePromise<Gate::RestoreResults> restore(Gate::Client gate, kj::StringPtr token) {
    auto request = gate.restoreRequest();
    request.setToken(token);
    return request.send();
  }

  capnp::EzRpcClient rpc;
  capnp::RemotePromise<Gate::RestoreResults> restored;

 public:
  Root::Client root;
};

}  // namespace cofferdam
