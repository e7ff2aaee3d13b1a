//! Names, manifests, platforms, and the unpacked state of images.
