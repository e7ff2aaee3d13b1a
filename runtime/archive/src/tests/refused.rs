//! A11, A12, A15, A16: archives that readers see differently, that are damaged, or that end too soon.

use std::io::Read;

use cofferdam_types::{Algorithm, Code, Digest};

use super::support::{Jail, Tar, gzip, record};
use crate::{ApplyOptions, Compression};

/// A tar whose first file's content is itself a header: a reader that takes another size sees a smuggled entry.
fn smuggler(prefix: Tar, size: &[u8]) -> Tar {
    let inner = Tar::new().file("smuggled", "").bytes;
    prefix.raw(b"outer", b'0', b"", 0o644, size, &inner)
}

#[test]
fn a11_pax_size_wins_over_the_header() {
    // As in Go and libarchive: whether the header's own size is zero or not.
    for size in [&b"00000000000\0"[..], b"00000000777\0"] {
        let jail = Jail::new();
        jail.apply(smuggler(Tar::new().pax(&[("size", b"512")]), size).file("after", "x")).unwrap();
        assert_eq!(jail.meta("outer").len(), 512);
        assert!(!jail.has("smuggled"));
        assert_eq!(jail.read("after"), "x");
    }
}

#[test]
fn a11_what_readers_see_differently_is_refused() {
    let ok = b"00000000512\0";
    let long = |tar: Tar, name: &[u8]| {
        tar.raw(b"././@LongLink", b'L', b"", 0, format!("{:011o}\0", name.len()).as_bytes(), name)
    };
    for (what, tar) in [
        ("size twice", smuggler(Tar::new().pax(&[("size", b"0"), ("size", b"512")]), ok)),
        ("path twice", Tar::new().pax(&[("path", b"a"), ("path", b"b")]).file("c", "")),
        ("empty size", smuggler(Tar::new().pax(&[("size", b"")]), ok)),
        ("two PAX headers", Tar::new().pax(&[("path", b"a")]).pax(&[("size", b"0")]).file("c", "")),
        ("PAX path and GNU name", long(Tar::new().pax(&[("path", b"a")]), b"b\0").file("c", "")),
        ("GNU name and PAX path", long(Tar::new(), b"b\0").pax(&[("path", b"a")]).file("c", "")),
        ("GNU name and PAX size", long(Tar::new().pax(&[("size", b"0")]), b"b\0").file("c", "")),
        ("two GNU names", long(long(Tar::new(), b"a\0"), b"b\0").file("c", "")),
        ("malformed length", Tar::new().pax_body(b'x', b"99 path=a\n").file("c", "")),
        ("no newline", Tar::new().pax_body(b'x', b"10 path=a.").file("c", "")),
        ("negative size", smuggler(Tar::new(), &[0xff; 12])),
        ("huge base-256", smuggler(Tar::new(), &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("leading NUL in the size", smuggler(Tar::new(), b"\x0000000001000")),
        ("negative PAX size", smuggler(Tar::new().pax(&[("size", b"-1")]), ok)),
        ("global size", smuggler(Tar::new().pax_body(b'g', &record("size", b"512")), b"00000000000\0")),
        ("global path", Tar::new().pax_body(b'g', &record("path", b"a")).file("c", "")),
        ("directory with a size", Tar::new().raw(b"d", b'5', b"", 0o755, b"00000001000\0", &[]).file("c", "")),
        (
            "link with a size",
            Tar::new().file("f", "").raw(b"l", b'1', b"f", 0o644, b"00000001000\0", &[]).file("c", ""),
        ),
        ("bad checksum", {
            let mut tar = Tar::new().file("f", "");
            tar.bytes[0] ^= 1;
            tar
        }),
        ("uid -1", Tar::new().pax(&[("uid", b"4294967295")]).file("c", "")),
        ("uid 2^32", Tar::new().pax(&[("uid", b"4294967296")]).file("c", "")),
        ("PAX header at the end", Tar::new().pax(&[("path", b"a")])),
    ] {
        let jail = Jail::new();
        match jail.apply(tar) {
            Err(error) if error.code == Code::DataLoss => {}
            other => panic!("{what}: {other:?}"),
        }
        assert!(!jail.has("smuggled"), "{what}");
    }
    let jail = Jail::new();
    for flag in *b"7VMDN~" {
        jail.refuses(Tar::new().raw(b"x", flag, b"", 0o644, b"00000000000\0", &[]), Code::InvalidArgument);
    }
}

#[test]
fn a11_what_all_readers_see_alike_is_read() {
    let jail = Jail::new();
    let long = "d/".repeat(60) + "file";
    let tar = Tar::new()
        // git archive
        .pax_body(b'g', &record("comment", b"0123456789abcdef"))
        .pax(&[
            ("path", b"paxed"),
            ("mtime", b"1350244992.5"),
            ("uid", b"7"),
            ("ctime", b"1.5"),
            ("hdrcharset", b"BINARY"),
        ])
        .file("c", "x")
        .pax(&[("mtime", b"1350244992")])
        .file(&long, "long")
        .raw(b"v7dir/", 0, b"", 0o755, b"00000000000\0", &[])
        .raw(b"v7file", 0, b"", 0o644, b"00000000001\0", b"7")
        .raw(b"base256", b'0', b"", 0o644, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], b"b");
    jail.apply(tar).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((jail.meta("paxed").mtime(), jail.meta("paxed").mtime_nsec()), (1_350_244_992, 500_000_000));
    assert_eq!(jail.meta("paxed").uid(), 7);
    assert_eq!(jail.read(&long), "long");
    assert!(jail.meta("v7dir").is_dir());
    assert_eq!((jail.read("v7file"), jail.read("base256")), ("7".into(), "b".into()));
    // A path that is split over the prefix field.
    let prefix = "p".repeat(100);
    jail.apply(Tar::new().file("name", "").patch(345, prefix.as_bytes())).unwrap();
    assert!(jail.has(&format!("{prefix}/name")));
    // And Go's old mixture of GNU magic and prefix, which images have.
    let tar = Tar::new().file("mixed", "").patch(345, prefix.as_bytes()).patch(257, b"ustar  \0");
    jail.apply(tar).unwrap();
    assert!(jail.has(&format!("{prefix}/mixed")));
}

#[test]
fn a12_sparse_files_are_refused() {
    let jail = Jail::new();
    jail.refuses(Tar::new().raw(b"s", b'S', b"", 0o644, b"00000000000\0", &[]), Code::Unimplemented);
    let map: Vec<u8> = "0,1,".repeat(100_000).into_bytes();
    for records in [
        vec![("GNU.sparse.major", &b"1"[..]), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"99999999999")],
        vec![("GNU.sparse.map", &map[..]), ("GNU.sparse.size", b"99999999999")],
    ] {
        jail.refuses(Tar::new().pax(&records).file("s", ""), Code::Unimplemented);
    }
    assert!(!jail.has("s"));
}

#[test]
fn a15_compressed_forms_and_their_damage() {
    let tar = Tar::new().file("f", &"content ".repeat(1000)).end();
    let id = Digest::of(Algorithm::Sha256, &tar);
    let zstd = zstd::encode_all(&tar[..], 3).unwrap();
    let half = tar.len() / 2;
    let gz_members = [gzip(&tar[..half]), gzip(&[]), gzip(&tar[half..])].concat();
    let zstd_frames = [
        &b"\x50\x2a\x4d\x18\x04\0\0\0skip"[..],
        &zstd::encode_all(&tar[..half], 1).unwrap(),
        &zstd::encode_all(&tar[half..], 1).unwrap(),
    ]
    .concat();
    for bytes in [&tar, &gzip(&tar), &zstd, &gz_members, &zstd_frames] {
        let jail = Jail::new();
        let applied = jail.apply_as(bytes, &ApplyOptions::default()).unwrap();
        assert_eq!((&applied.diff_id, applied.size), (&id, tar.len() as u64));
        assert_eq!(jail.read("f").len(), 8000);
    }
    let mut crc = gzip(&tar);
    let at = crc.len() - 6;
    crc[at] ^= 1;
    let mut flipped = zstd.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 0x55;
    for (what, bytes) in [
        ("gzip crc", crc),
        ("zstd bits", flipped),
        ("behind gzip", [&gzip(&tar)[..], b"garbage"].concat()),
        ("behind gzip, zeros", [&gzip(&tar)[..], &[0; 512]].concat()),
        ("behind zstd", [&zstd[..], b"garbage"].concat()),
        ("behind tar", [&tar[..], b"garbage"].concat()),
        ("a tar behind tar", [&tar[..], &tar].concat()),
        ("not a tar", vec![b'x'; 2048]),
    ] {
        let jail = Jail::new();
        match jail.apply_as(&bytes, &ApplyOptions::default()) {
            Err(error) if error.code == Code::DataLoss => {}
            other => panic!("{what}: {other:?}"),
        }
    }
    // A frame that asks for a window of 2 GiB.
    let window = b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00";
    let error = Jail::new().apply_as(window, &ApplyOptions::default()).unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error}");
    // Told to be what it is not.
    let told = ApplyOptions { compression: Compression::Gzip, ..ApplyOptions::default() };
    assert_eq!(Jail::new().apply_as(&tar, &told).unwrap_err().code, Code::DataLoss);
    // Zeros behind the end belong to the diff id.
    let padded = [&tar[..], &[0; 9216]].concat();
    let applied = Jail::new().apply_as(&gzip(&padded), &ApplyOptions::default()).unwrap();
    assert_eq!(applied.diff_id, Digest::of(Algorithm::Sha256, &padded));
    // Nothing at all is an empty layer, and so is an archive without its end.
    assert_eq!(Jail::new().apply_as(&[], &ApplyOptions::default()).unwrap().entries, 0);
    assert_eq!(Jail::new().apply_as(&tar[..tar.len() - 1024], &ApplyOptions::default()).unwrap().entries, 1);
    // And one that ends with the content of its last file.
    let bare = Tar::new().file("f", "x").end();
    assert_eq!(Jail::new().apply_as(&bare[..513], &ApplyOptions::default()).unwrap().entries, 1);
}

#[test]
fn a16_a_truncated_stream_is_an_error() {
    let tar = Tar::new().file("f", &"content ".repeat(100)).file("g", "x").end();
    let (gz, zstd) = (gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap());
    // Within a header, a file, its padding; the compressed forms anywhere.
    let cuts = [1, 511, 513, 1000, 1340, 1537].map(|cut| tar[..cut].to_vec());
    let gzs = (1..gz.len()).step_by(7).map(|cut| gz[..cut].to_vec());
    let zstds = (1..zstd.len()).step_by(7).map(|cut| zstd[..cut].to_vec());
    for bytes in cuts.into_iter().chain(gzs).chain(zstds) {
        match Jail::new().apply_as(&bytes, &ApplyOptions::default()) {
            Err(error) if error.code == Code::DataLoss => {}
            other => panic!("{} bytes: {other:?}", bytes.len()),
        }
    }
}

#[test]
fn an_error_of_the_source_keeps_its_code() {
    struct Broken(bool);
    impl Read for Broken {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(std::io::Error::other(cofferdam_types::Error::revoked("grant", "7", "gone")));
            }
            let tar = gzip(&Tar::new().file("f", "x").end());
            into[..3].copy_from_slice(&tar[..3]);
            Ok(3)
        }
    }
    let jail = Jail::new();
    let root = std::fs::File::open(jail.root()).unwrap();
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let result = crate::apply(std::os::fd::AsFd::as_fd(&root), Broken(false), &ApplyOptions::default(), &cancel);
    assert_eq!(result.unwrap_err().code, Code::Revoked);
}
