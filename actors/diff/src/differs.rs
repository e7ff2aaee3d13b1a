//! Differs: who turns layers of which media types into tars, and tars into such layers. The first that takes a media type
//! does it; what none takes is `unimplemented`, with the types that there are. Another one is one type here and one entry
//! of [`ALL`].

use std::io::{self, Write};

use cofferdam_types::{
    Error, Result,
    media::{self, Compression, Kind},
};

/// One of them.
pub(crate) trait Differ: Sync {
    /// Whether it reads layers of this media type.
    fn reads(&self, media_type: &str) -> bool;

    /// The media types of the layers that it writes.
    fn writes(&self) -> &'static [&'static str];

    /// Writes a tar as such a layer.
    fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>>;
}

/// A layer on its way.
pub(crate) trait Packed: Write {
    /// That was all of the tar.
    fn end(self: Box<Self>) -> io::Result<()>;
}

/// All of them, in the order in which they are asked.
const ALL: [&dyn Differ; 3] = [&Gzip, &Zstd, &Plain];

/// Refuses a media type that no differ reads.
pub(crate) fn readable(media_type: &str) -> Result<()> {
    match ALL.iter().any(|differ| differ.reads(media_type)) {
        true => Ok(()),
        false => {
            Err(Error::invalid("layer", media_type, "is a media type that is not a layer's, or of none that is read"))
        }
    }
}

/// The differ that writes layers of this media type.
pub(crate) fn writer(media_type: &str) -> Result<&'static dyn Differ> {
    ALL.into_iter().find(|differ| differ.writes().contains(&media_type)).ok_or_else(|| {
        let known: Vec<&str> = ALL.iter().flat_map(|differ| differ.writes()).copied().collect();
        let why = format!("is not a media type of layers that are written: choose one of {}", known.join(", "));
        Error::unimplemented("layer", media_type, why)
    })
}

fn is(media_type: &str, compression: Compression) -> bool {
    media::kind(media_type) == Kind::Layer(compression)
}

struct Gzip;

impl Differ for Gzip {
    fn reads(&self, media_type: &str) -> bool {
        is(media_type, Compression::Gzip)
    }

    fn writes(&self) -> &'static [&'static str] {
        &[media::OCI_LAYER_GZIP, media::DOCKER_LAYER_GZIP]
    }

    fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>> {
        Ok(Box::new(flate2::write::GzEncoder::new(out, flate2::Compression::fast())))
    }
}

impl<W: Write> Packed for flate2::write::GzEncoder<W> {
    fn end(self: Box<Self>) -> io::Result<()> {
        self.finish()?.flush()
    }
}

struct Zstd;

impl Differ for Zstd {
    fn reads(&self, media_type: &str) -> bool {
        is(media_type, Compression::Zstd)
    }

    fn writes(&self) -> &'static [&'static str] {
        &[media::OCI_LAYER_ZSTD, media::DOCKER_LAYER_ZSTD]
    }

    fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>> {
        Ok(Box::new(zstd::stream::write::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?))
    }
}

impl<W: Write> Packed for zstd::stream::write::Encoder<'_, W> {
    fn end(self: Box<Self>) -> io::Result<()> {
        self.finish()?.flush()
    }
}

struct Plain;

impl Differ for Plain {
    fn reads(&self, media_type: &str) -> bool {
        is(media_type, Compression::None)
    }

    fn writes(&self) -> &'static [&'static str] {
        &[media::OCI_LAYER, media::DOCKER_LAYER]
    }

    fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>> {
        Ok(Box::new(Whole(out)))
    }
}

struct Whole<'a>(Box<dyn Write + 'a>);

impl Write for Whole<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Packed for Whole<'_> {
    fn end(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use cofferdam_types::Code;

    use super::*;

    #[test]
    fn the_first_that_takes_a_media_type_does_it_and_what_none_takes_is_refused() {
        for differ in ALL {
            for media_type in differ.writes() {
                readable(media_type).unwrap();
                let mut bytes = Vec::new();
                let mut packed = writer(media_type).unwrap().pack(Box::new(&mut bytes)).unwrap();
                packed.write_all(b"a tar").unwrap();
                packed.end().unwrap();
                let mut text = String::new();
                match Compression::sniff(&bytes) {
                    Compression::None => text = String::from_utf8(bytes).unwrap(),
                    Compression::Gzip => drop(flate2::read::GzDecoder::new(&*bytes).read_to_string(&mut text).unwrap()),
                    Compression::Zstd => text = String::from_utf8(zstd::decode_all(&*bytes).unwrap()).unwrap(),
                }
                assert_eq!(text, "a tar", "{media_type}");
            }
        }
        readable("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip").unwrap();
        readable("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd").unwrap();
        for other in ["", media::OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+xz", "application/gzip"] {
            assert_eq!(readable(other).unwrap_err().code, Code::InvalidArgument, "{other}");
            let error = writer(other).err().unwrap();
            assert_eq!(error.code, Code::Unimplemented, "{other}");
            assert!(error.message.contains(media::DOCKER_LAYER_ZSTD), "{error}");
        }
    }
}
