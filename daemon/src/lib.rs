//! The daemon: configuration, placement, sockets, and the RPC servers.
