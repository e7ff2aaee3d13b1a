@0xd1c47e08b5f9a263;
# What a container uses and has used: one set of figures, whether the host counts by cgroup v1, v2 or both.

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("cofferdam");

using Common = import "common.capnp";

struct Metrics @0xf60b7d9a84e3c215 {
  at @0 :Common.Time;
  cpu @1 :Cpu;
  memory @2 :Memory;
  pids @3 :Pids;
  # Null where the host doesn't count it.
  io @4 :List(Io);
  # The block devices that it used.
  hugetlb @5 :List(Hugetlb);
}

struct Cpu @0x9e52c8f1d07ab634 {
  # Nanoseconds.
  usage @0 :UInt64;
  user @1 :UInt64;
  system @2 :UInt64;
  periods @3 :UInt64;
  # Periods of a limit in which it wanted to run.
  throttledPeriods @4 :UInt64;
  # Those in which it was stopped.
  throttled @5 :UInt64;
}

struct Memory @0xc7398ae4f15d0b62 {
  # Bytes.
  usage @0 :UInt64;
  # The page cache included.
  peak @1 :UInt64;
  limit @2 :UInt64;
  # 0 is none, here and below.
  workingSet @3 :UInt64;
  # In use but for what the kernel can drop at once.
  failures @4 :UInt64;
  # How often the limit was in the way.
  swap @5 :UInt64;
  # Swap alone.
  swapLimit @6 :UInt64;
  oomKills @7 :UInt64;
  underOom @8 :Bool;
  # It stands still for want of memory.
  stat @9 :List(Stat);
  # memory.stat, in the kernel's own words.
}

struct Stat @0xa4d06b93e2c85f17 {
  name @0 :Text;
  value @1 :UInt64;
}

struct Pids @0xdb85f0c629e71a43 {
  # Processes and threads.
  current @0 :UInt64;
  limit @1 :UInt64;
}

struct Io @0x8fa17c4e36b2d905 {
  major @0 :UInt32;
  minor @1 :UInt32;
  read @2 :UInt64;
  # Bytes.
  written @3 :UInt64;
  reads @4 :UInt64;
  # Requests.
  writes @5 :UInt64;
}

struct Hugetlb @0xe3c96d215ab0f784 {
  pageSize @0 :Text;
  # As the kernel names it: 2MB.
  usage @1 :UInt64;
  peak @2 :UInt64;
  # v1 alone.
  limit @3 :UInt64;
  failures @4 :UInt64;
}
