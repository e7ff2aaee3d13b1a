//! Linux as this project needs it: mounts, cgroups, clone3, pidfds, xattrs, openat2.
