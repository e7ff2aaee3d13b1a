//! The Cap'n Proto schema, its conversions, and the stream that carries file descriptors.
