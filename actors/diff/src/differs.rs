//! Differs: who turns layers of which media types into tars, and tars into such layers. They are asked in order: one that says
//! `unimplemented` gives way to the next, and any other error is the answer. What none takes is `unimplemented`, with the
//! types that there are. Another one is one type here and one entry of [`ALL`].

use std::{
    cell::Cell,
    io::{self, Write},
    rc::Rc,
};

use cofferdam_types::{
    Code, Error, Result,
    media::{self, Compression, Kind},
};
use zeekstd::{EncodeOptions, Encoder, FrameSizePolicy};

/// One of them.
pub(crate) trait Differ: Sync {
    /// Whether it reads layers of this media type. `unimplemented`: another may.
    fn reads(&self, media_type: &str) -> Result<()>;

    /// Whether it writes layers of this media type. `unimplemented`: another may.
    fn writes(&self, media_type: &str) -> Result<()> {
        match self.types().contains(&media_type) {
            true => Ok(()),
            false => Err(Error::unimplemented("layer", media_type, "is written by another differ")),
        }
    }

    /// The media types of the layers that it writes, for those who ask which there are.
    fn types(&self) -> &'static [&'static str];

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

/// The first that doesn't say `unimplemented`; what else it says is the answer.
fn first<'d>(
    differs: &[&'d dyn Differ],
    asked: impl Fn(&dyn Differ) -> Result<()>,
    none: impl FnOnce() -> Error,
) -> Result<&'d dyn Differ> {
    for differ in differs {
        match asked(*differ) {
            Err(error) if error.code == Code::Unimplemented => {}
            answer => return answer.map(|()| *differ),
        }
    }
    Err(none())
}

/// Refuses a media type that no differ reads.
pub(crate) fn readable(media_type: &str) -> Result<()> {
    let none = || {
        let why =
            "is a media type that is not a layer's, or of none that is read: the image is made for something else";
        Error::unimplemented("layer", media_type, why)
    };
    first(&ALL, |differ| differ.reads(media_type), none).map(drop)
}

/// The differ that writes layers of this media type.
pub(crate) fn writer(media_type: &str) -> Result<&'static dyn Differ> {
    first(
        &ALL,
        |differ| differ.writes(media_type),
        || {
            let known: Vec<&str> = ALL.iter().flat_map(|differ| differ.types()).copied().collect();
            let why = format!("is not a media type of layers that are written: choose one of {}", known.join(", "));
            Error::unimplemented("layer", media_type, why)
        },
    )
}

fn is(media_type: &str, compression: Compression) -> Result<()> {
    match media::kind(media_type) == Kind::Layer(compression) {
        true => Ok(()),
        false => Err(Error::unimplemented("layer", media_type, "is read by another differ")),
    }
}

struct Gzip;

impl Differ for Gzip {
    fn reads(&self, media_type: &str) -> Result<()> {
        is(media_type, Compression::Gzip)
    }

    fn types(&self) -> &'static [&'static str] {
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
    fn reads(&self, media_type: &str) -> Result<()> {
        is(media_type, Compression::Zstd)
    }

    fn types(&self) -> &'static [&'static str] {
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
    fn reads(&self, media_type: &str) -> Result<()> {
        is(media_type, Compression::None)
    }

    fn types(&self) -> &'static [&'static str] {
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

    use super::*;

    #[test]
    fn the_first_that_takes_a_media_type_does_it_and_what_none_takes_is_refused() {
        for differ in ALL {
            for media_type in differ.types() {
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
            assert_eq!(readable(other).unwrap_err().code, Code::Unimplemented, "{other}");
            let error = writer(other).err().unwrap();
            assert_eq!(error.code, Code::Unimplemented, "{other}");
            assert!(error.message.contains(media::DOCKER_LAYER_ZSTD), "{error}");
        }
    }

    /// Takes all layers with the same answer.
    struct Says(Option<Code>);

    impl Differ for Says {
        fn reads(&self, media_type: &str) -> Result<()> {
            match self.0 {
                None => Ok(()),
                Some(Code::Unimplemented) => Err(Error::unimplemented("layer", media_type, "is another differ's")),
                Some(_) => Err(Error::data_loss("layer", media_type, "can't be opened")),
            }
        }

        fn writes(&self, media_type: &str) -> Result<()> {
            self.reads(media_type)
        }

        fn types(&self) -> &'static [&'static str] {
            &[]
        }

        fn pack<'a>(&self, out: Box<dyn Write + 'a>) -> io::Result<Box<dyn Packed + 'a>> {
            Ok(Box::new(Whole(out)))
        }
    }

    #[test]
    fn who_says_unimplemented_gives_way_and_no_other_error_is_masked() {
        let (other, broken, takes) = (Says(Some(Code::Unimplemented)), Says(Some(Code::DataLoss)), Says(None));
        /// Which one takes a layer.
        fn asked(differs: &[&dyn Differ]) -> std::result::Result<usize, Code> {
            let none = || Error::not_found("differ", "", "none of them");
            let place =
                |found: &dyn Differ| differs.iter().position(|differ| std::ptr::addr_eq(*differ, found)).unwrap();
            let reads = first(differs, |differ| differ.reads(media::OCI_LAYER), none).map(place);
            let writes = first(differs, |differ| differ.writes(media::OCI_LAYER), none).map(place);
            assert_eq!(reads, writes);
            reads.map_err(|error| error.code)
        }
        let again = Says(None);
        assert_eq!(asked(&[&other, &takes, &broken]), Ok(1), "the second for what the first doesn't do");
        assert_eq!(asked(&[&takes, &again]), Ok(0), "and nobody else for what it does");
        assert_eq!(asked(&[&other, &other, &takes]), Ok(2));
        assert_eq!(asked(&[&broken, &takes]), Err(Code::DataLoss), "its error is the answer");
        assert_eq!(asked(&[&other, &broken, &takes]), Err(Code::DataLoss));
        assert_eq!(asked(&[&other]), Err(Code::NotFound), "none takes it");
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
