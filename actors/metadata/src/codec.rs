//! Rows as bytes: keys that sort as they read, values in CBOR (RFC 8949).

use cofferdam_types::{Any, Error, Result};
use serde::{Serialize, de::DeserializeOwned};

use crate::tx::MAX_RECORD;

/// A key from its parts. The parts hold no NUL (the types of names see to that), so a NUL between them keeps the
/// order of the parts and no key is a prefix of another by accident.
pub(crate) fn key(parts: &[&str]) -> Vec<u8> {
    parts.join("\0").into_bytes()
}

/// The key under which all keys that begin with these parts lie.
pub(crate) fn prefix(parts: &[&str]) -> Vec<u8> {
    let mut bytes = key(parts);
    if !parts.is_empty() {
        bytes.push(0);
    }
    bytes
}

/// The parts of a key.
pub(crate) fn parts(key: &[u8]) -> Result<Vec<&str>> {
    let text =
        std::str::from_utf8(key).map_err(|_| Error::data_loss("record", key.escape_ascii(), "its key is not text"))?;
    Ok(text.split('\0').collect())
}

/// The first key after all those that begin with `prefix`; `None`: there is no end.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

pub(crate) fn encode(kind: &'static str, value: &impl Serialize) -> Result<Vec<u8>> {
    cbor4ii::serde::to_vec(Vec::new(), value).map_err(|e| Error::internal(kind, "", format!("encoding it: {e}")))
}

pub(crate) fn decode<T: DeserializeOwned>(kind: &'static str, key: &[u8], bytes: &[u8]) -> Result<T> {
    cbor4ii::serde::from_slice(bytes).map_err(|e| unreadable(kind, key, e))
}

pub(crate) fn unreadable(kind: &'static str, key: &[u8], why: impl std::fmt::Display) -> Error {
    let id = String::from_utf8_lossy(key).replace('\0', "/");
    Error::data_loss(kind, id, format!("its record cannot be read: {why}"))
}

/// Packs what is long and repeats itself (LZ4 block format, its length in front): fewer pages are written and read.
pub(crate) fn pack(bytes: &[u8]) -> Vec<u8> {
    lz4_flex::compress_prepend_size(bytes)
}

/// What was packed.
pub(crate) fn unpack(kind: &'static str, key: &[u8], packed: &[u8]) -> Result<Vec<u8>> {
    let (length, packed) = lz4_flex::block::uncompressed_size(packed).map_err(|e| unreadable(kind, key, e))?;
    // More than any record may have is damage, and no reason to take memory.
    if length > MAX_RECORD {
        return Err(unreadable(kind, key, format!("it says that it has {length} bytes")));
    }
    lz4_flex::decompress(packed, length).map_err(|e| unreadable(kind, key, e))
}

pub(crate) fn number(bytes: &[u8]) -> Result<u64> {
    let wrong = |_| Error::data_loss("record", bytes.escape_ascii(), "a number has the wrong size");
    let bytes = bytes.try_into().map_err(wrong)?;
    Ok(u64::from_be_bytes(bytes))
}

/// A payload as bytes: by itself serde writes a `Vec<u8>` as a list of numbers, twice as long.
pub(crate) mod any {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Any;

    #[derive(Serialize, Deserialize)]
    struct Packed(String, serde_bytes::ByteBuf);

    pub(crate) fn serialize<S: Serializer>(any: &Any, serializer: S) -> Result<S::Ok, S::Error> {
        (&any.type_url, serde_bytes::Bytes::new(&any.value)).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Any, D::Error> {
        let Packed(type_url, value) = Packed::deserialize(deserializer)?;
        Ok(Any { type_url, value: value.into_vec() })
    }
}

/// A map of payloads.
pub(crate) mod any_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Any;

    #[derive(Serialize, Deserialize)]
    struct Packed(#[serde(with = "super::any")] Any);

    pub(crate) fn serialize<S: Serializer>(map: &BTreeMap<String, Any>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(k, v)| (k, Packed(v.clone()))))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Any>, D::Error> {
        let map = BTreeMap::<String, Packed>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(k, v)| (k, v.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_before_their_neighbours() {
        assert_eq!(after_prefix(b"a\0"), Some(b"a\x01".to_vec()));
        assert_eq!(after_prefix(&[1, 255, 255]), Some(vec![2]));
        assert_eq!(after_prefix(&[255]), None);
        assert!(key(&["ab", "c"]) > key(&["a", "z"]));
        assert!(!key(&["ab"]).starts_with(&prefix(&["a"])));
    }

    #[test]
    fn floats_are_read_in_the_shortest_form_too() {
        // As older daemons wrote them, in the payloads of events.
        let forms: [(&[u8], f64); 3] =
            [(&[0xf9, 0x38, 0], 0.5), (&[0xfa, 0x3f, 0, 0, 0], 0.5), (&[0xfb, 0x3f, 0xe0, 0, 0, 0, 0, 0, 0], 0.5)];
        for (bytes, value) in forms {
            assert_eq!(decode::<serde_json::Value>("event", b"", bytes).unwrap(), serde_json::json!(value));
        }
    }

    #[test]
    fn the_payload_of_an_event_comes_back_as_it_was() {
        let payload = serde_json::json!({"none": null, "list": [null, [], {"none": null}], "empty": {}});
        let event = cofferdam_types::Event::new(&cofferdam_types::Namespace::default_namespace(), "/test", payload);
        let bytes = encode("event", &event).unwrap();
        assert_eq!(decode::<cofferdam_types::Event>("event", b"", &bytes).unwrap(), event);
    }

    #[test]
    fn what_was_packed_comes_back_and_what_was_altered_is_refused() {
        for text in [&b""[..], b"{}", &[b'x'; 100_000]] {
            assert_eq!(unpack("spec", b"k", &pack(text)).unwrap(), text);
        }
        let mut longer = pack(&[b'x'; 1000]);
        longer[3] = 0x7f; // It says that it has two gigabytes.
        for bytes in [&b""[..], b"\x05", b"\x05\0\0\0", &longer] {
            assert_eq!(unpack("spec", b"ns\0k", bytes).unwrap_err().code, cofferdam_types::Code::DataLoss, "{bytes:?}");
        }
    }
}
