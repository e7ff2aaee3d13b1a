//! JSON from strangers, read strictly: bounded in size, depth and number of values, and no key twice (two readers of
//! `{"digest": a, "digest": b}` may see two different images).

use std::fmt;

use cofferdam_types::{Digest, Error, Limits, Result, USUAL};
use serde::{
    Deserialize,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// The most bytes that a manifest, an index or a config may have: the usual limit of registries.
pub const MAX_DOCUMENT: u64 = USUAL.manifest;

/// Reads the document `digest`, whose bytes the caller has verified.
pub fn parse(digest: &Digest, bytes: &[u8]) -> Result<Map<String, Value>> {
    parse_within(digest, bytes, Limits::get().manifest)
}

/// The same of at most so many bytes.
pub fn parse_within(digest: &Digest, bytes: &[u8], most: u64) -> Result<Map<String, Value>> {
    let bad = |why: String| Error::invalid("document", digest, format!("is not a document that can be trusted: {why}"));
    if bytes.len() as u64 > most {
        return Err(bad(format!("it has {} bytes, more than the {most} allowed", bytes.len())));
    }
    let mut left = Limits::get().values;
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict { depth: 0, left: &mut left }
        .deserialize(&mut reader)
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|e| bad(e.to_string()))?;
    match value {
        Value::Object(map) => Ok(map),
        _ => Err(bad("it is not a JSON object".into())),
    }
}

/// Reads one field into a type; a missing field is an error that names it.
pub fn field<T: for<'de> Deserialize<'de>>(digest: &Digest, map: &Map<String, Value>, name: &str) -> Result<T> {
    let value = map.get(name).unwrap_or(&Value::Null);
    T::deserialize(value).map_err(|e| Error::invalid("document", digest, format!("field `{name}`: {e}")))
}

struct Strict<'a> {
    depth: u64,
    left: &'a mut u64,
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Limits { nesting, values, .. } = Limits::get();
        if self.depth > *nesting {
            return Err(de::Error::custom(format_args!("it is nested deeper than {nesting}")));
        }
        *self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| de::Error::custom(format_args!("it holds more than {values} values")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict { depth: self.depth + 1, left: self.left })? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Strict { depth: self.depth + 1, left: self.left })?;
            if map.contains_key(&key) {
                let shown: String = key.chars().take(40).collect();
                return Err(de::Error::custom(format_args!("the key {shown:?} stands in an object twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Map<String, Value>> {
        parse(
            &"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap(),
            text.as_bytes(),
        )
    }

    #[test]
    fn ordinary_documents_are_read() {
        let map = read(r#"{"a": [1, -2, 0.5, null, true, "x"], "b": {"c": {}}}"#).unwrap();
        assert_eq!(Value::Object(map), serde_json::json!({"a": [1, -2, 0.5, null, true, "x"], "b": {"c": {}}}));
    }

    #[test]
    fn m4_json_over_4_mib_is_refused() {
        let text = format!(r#"{{"a": "{}"}}"#, "x".repeat(MAX_DOCUMENT as usize));
        assert!(read(&text).unwrap_err().message.contains("more than"));
    }

    #[test]
    fn m4_deep_nesting_is_refused() {
        let text = format!(r#"{{"a": {}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert!(read(&text).unwrap_err().message.contains("deep"));
    }

    #[test]
    fn m4_duplicate_keys_are_refused_at_any_depth() {
        assert!(read(r#"{"a": 1, "a": 1}"#).unwrap_err().message.contains("twice"));
        // The same key in another spelling.
        assert!(read(r#"{"x": [{"digest": 1, "\u0064igest": 2}]}"#).unwrap_err().message.contains("twice"));
    }

    #[test]
    fn m5_too_many_values_are_refused() {
        let text = format!(r#"{{"a": [{}1]}}"#, "1,".repeat(USUAL.values as usize));
        assert!(read(&text).unwrap_err().message.contains("values"));
    }

    #[test]
    fn what_follows_the_document_is_refused() {
        for text in ["{} {}", "{}x", "[]", "1", "", "{"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
