//! Bodies into values, noting what a plain parse would hide.

use std::fmt;

use quorate_proto::status::Status;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A body as it was read, before any schema is applied.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    /// Paths of fields that occur twice in their object; the last one counts.
    pub duplicates: Vec<String>,
}

/// Most duplicates that are reported; upstream's limit on strict errors.
const MAX_DUPLICATES: usize = 100;

/// Reads a JSON body. The parser's own bound on nesting is 128.
///
/// # Errors
/// 400 when the bytes are not one JSON value, or nest too deeply.
pub fn parse_json(bytes: &[u8]) -> Result<Parsed, Status> {
    let mut duplicates = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Seed { path: Path::Root, duplicates: &mut duplicates }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| {
            Status::bad_request(format!(
                "the object provided is unrecognized (must be of type Object): couldn't get version/kind; json parse error: {error}"
            ))
        })?;
    Ok(Parsed { value, duplicates })
}

/// Reads a YAML body of one document.
///
/// # Errors
/// 400 as for [`parse_json`]; a field given twice is always an error in YAML.
pub fn parse_yaml(bytes: &[u8]) -> Result<Parsed, Status> {
    // JSON is YAML; its own parser is faster and notes duplicates.
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(parsed) = parse_json(bytes)
    {
        return Ok(parsed);
    }
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value = serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
    Ok(Parsed { value, duplicates: Vec::new() })
}

/// Where the parser is; rendered only when there is something to report.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Index(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Seed<'a> {
    path: Path<'a>,
    duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let seed = Seed { path: Path::Index(&self.path, list.len()), duplicates: &mut *self.duplicates };
            match items.next_element_seed(seed)? {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let path = Path::Field(&self.path, &name);
            if map.contains_key(&name) {
                if self.duplicates.len() == MAX_DUPLICATES {
                    return Err(A::Error::custom("too many duplicate fields"));
                }
                self.duplicates.push(path.to_string());
            }
            let value = entries.next_value_seed(Seed { path, duplicates: &mut *self.duplicates })?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn duplicates_are_found_where_they_are() {
        let parsed = parse_json(br#"{"a":{"b":1,"c":[{"d":1,"d":2}],"b":3}}"#).unwrap();
        assert_eq!(parsed.value, json!({"a": {"b": 3, "c": [{"d": 2}]}}));
        assert_eq!(parsed.duplicates, ["a.c[0].d", "a.b"]);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        let deep = "[".repeat(100_000);
        for bytes in ["", "{", "{} {}", "nul", deep.as_str()] {
            assert_eq!(parse_json(bytes.as_bytes()).unwrap_err().code, 400, "{:.20}", bytes);
        }
    }

    #[test]
    fn yaml_is_read_as_kubernetes_reads_it() {
        let parsed = parse_yaml(b"a: yes\nmode: 0644\nb: [1, \"2\"]\nc: 1.5\n").unwrap();
        assert_eq!(parsed.value, json!({"a": true, "mode": 420, "b": [1, "2"], "c": 1.5}));
        assert_eq!(parse_yaml(b"a: 1\na: 2\n").unwrap_err().code, 400);
        assert_eq!(parse_yaml(br#"{"a": 1, "a": 2}"#).unwrap().duplicates, ["a"]);
    }
}
