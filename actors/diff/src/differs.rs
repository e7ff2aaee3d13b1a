//! Differs: who turns layers of which media types into tars, and tars into such layers. The first that takes a media type
//! does it; what none takes is `unimplemented`, with the types that there are. Another one is one type here and one entry
//! of [`ALL`].

use std::{
    cell::Cell,
    io::{self, Write},
    rc::Rc,
};

use cofferdam_types::{
    Error, Result,
    media::{self, Compression, Kind},
};
use zeekstd::{EncodeOptions, Encoder, FrameSizePolicy};

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

/// So much of a tar is compressed by itself: whoever wants a file of the layer reads no more than that beside it.
const FRAME: u32 = 4 << 20;

/// Writes the seekable format: frames that stand for themselves, and behind them one that decoders skip, with the places of
/// the others. Any decoder reads it from the beginning to the end.
struct Zstd;

impl Differ for Zstd {
    fn reads(&self, media_type: &str) -> bool {
        is(media_type, Compression::Zstd)
    }

    fn writes(&self) -> &'static [&'static str] {
        &[media::OCI_LAYER_ZSTD, media::DOCKER_LAYER_ZSTD]
    }

    fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>> {
        let failed = Rc::default();
        let options = EncodeOptions::new()
            .frame_size_policy(FrameSizePolicy::Uncompressed(FRAME))
            .compression_level(zstd::DEFAULT_COMPRESSION_LEVEL);
        let out = Noted { out, failed: Rc::clone(&failed) };
        Ok(Box::new(Frames { encoder: options.into_encoder(out).map_err(io::Error::other)?, failed }))
    }
}

struct Frames<'a> {
    encoder: Encoder<'static, Noted<'a>>,
    failed: Rc<Cell<Option<io::Error>>>,
}

/// Keeps why nothing more could be written, which the encoder's errors don't say.
struct Noted<'a> {
    out: Box<dyn Write + 'a>,
    failed: Rc<Cell<Option<io::Error>>>,
}

impl Noted<'_> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|e| {
            let kind = e.kind();
            // It is asked again after this one.
            if kind != io::ErrorKind::Interrupted {
                self.failed.set(Some(e));
            }
            kind.into()
        })
    }
}

impl Write for Noted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.note(flushed)
    }
}

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.compress(bytes).map_err(|e| self.failed.take().unwrap_or_else(|| io::Error::other(e)))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush().map_err(|e| self.failed.take().unwrap_or(e))
    }
}

impl Packed for Frames<'_> {
    fn end(self: Box<Self>) -> io::Result<()> {
        let Frames { encoder, failed } = *self;
        encoder.finish().map(drop).map_err(|e| failed.take().unwrap_or_else(|| io::Error::other(e)))
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
    fn zstd(tar: &[u8], out: Box<dyn Write + '_>) -> io::Result<()> {
        let mut packed = Zstd.pack(out)?;
        packed.write_all(tar)?;
        packed.end()
    }

    #[test]
    fn what_is_compressed_by_zstd_can_be_read_from_any_place_and_as_a_whole() {
        let tar: Vec<u8> = (0..3 * FRAME + 12_345).flat_map(|n| (n / 7).to_le_bytes()).step_by(4).collect();
        let mut bytes = Vec::new();
        zstd(&tar, Box::new(&mut bytes)).unwrap();
        assert_eq!(zstd::decode_all(&*bytes).unwrap(), tar);
        let mut whole = Vec::new();
        zstd::stream::read::Decoder::new(&*bytes).unwrap().read_to_end(&mut whole).unwrap();
        assert_eq!(whole, tar, "and by a reader of one stream");
        let frames = zeekstd::SeekTable::from_seekable(&mut zeekstd::BytesWrapper::new(&bytes)).unwrap();
        assert_eq!((frames.num_frames(), frames.size_decomp()), (4, tar.len() as u64));
        for at in [0, 1, FRAME as usize - 1, FRAME as usize, 2 * FRAME as usize + 7, tar.len() - 5] {
            let (from, to) = (at as u64, (at + 5) as u64);
            let options = zeekstd::DecodeOptions::new(zeekstd::BytesWrapper::new(&bytes));
            let mut decoder = options.offset(from).offset_limit(to).into_decoder().unwrap();
            let mut part = Vec::new();
            decoder.read_to_end(&mut part).unwrap();
            assert_eq!(part, tar[at..at + 5], "from {at}");
            assert!(decoder.read_compressed() <= frames.max_frame_size_comp() * 2, "it reads no more than it must");
        }
        // Of nothing too.
        let mut bytes = Vec::new();
        zstd(b"", Box::new(&mut bytes)).unwrap();
        assert_eq!(zstd::decode_all(&*bytes).unwrap(), b"");
        assert_eq!(Compression::sniff(&bytes), Compression::Zstd);
    }

    #[test]
    fn who_takes_no_more_is_asked_why() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other(Error::resource_exhausted("blob", "", "the disk is full")))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        // It doesn't compress.
        let mut state = 1_u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        });
        for tar in [noise.take(FRAME as usize).collect(), b"short".to_vec()] {
            let error = zstd(&tar, Box::new(Full)).unwrap_err();
            let inner = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
            assert_eq!(inner.map(|e| e.code), Some(Code::ResourceExhausted), "{error}");
        }
    }
}
