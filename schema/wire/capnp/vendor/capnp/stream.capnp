# The declaration that `-> stream` refers to (Debian's capnproto package ships the compiler without it).
@0x86c366a91393f3f8;
struct StreamResult @0x995f9a3377c0b16e {}
