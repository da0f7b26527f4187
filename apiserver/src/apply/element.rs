//! One step of a path: into a field, or to an item of a list.

use std::fmt;

use serde_json::{Map, Value};

/// A step as FieldsV1 writes it: `f:name`, `k:{"name":"x"}`, `v:"x"` or `i:0`. Two steps
/// are one exactly when their texts are: keys are sorted and carry no spaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Element(Box<str>);

impl Element {
    pub(super) fn field(name: &str) -> Self {
        Self(format!("f:{name}").into())
    }

    /// The item of a list whose fields have these values.
    pub(super) fn keys(keys: Map<String, Value>) -> Self {
        Self(format!("k:{}", Value::Object(keys)).into())
    }

    /// The item of a set.
    pub(super) fn value(value: &Value) -> Self {
        Self(format!("v:{value}").into())
    }

    /// Reads one step; `None` for a sort of step that only later versions know.
    ///
    /// # Errors
    /// When the text is malformed.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        let malformed = || format!("{text:?} is no path element");
        let (Some(sort), Some(rest)) = (text.get(..2), text.get(2..)) else { return Err(malformed()) };
        match sort {
            "f:" => Ok(Some(Self(text.into()))),
            "i:" if rest.parse::<i64>().is_ok() => Ok(Some(Self(text.into()))),
            "k:" => serde_json::from_str(rest).map(|keys| Some(Self::keys(keys))).map_err(|_| malformed()),
            "v:" => serde_json::from_str(rest).map(|value: Value| Some(Self::value(&value))).map_err(|_| malformed()),
            "i:" => Err(malformed()),
            _ if sort.ends_with(':') => Ok(None),
            _ => Err(malformed()),
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The field's name, if this is a step into a field.
    pub(super) fn as_field(&self) -> Option<&str> {
        self.0.strip_prefix("f:")
    }
}

/// As conflicts print it: `.name`, `[name="x"]`, `[="x"]` or `[0]`.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sort, rest) = self.0.split_at(2);
        match sort {
            "f:" => write!(f, ".{rest}"),
            "k:" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
                let texts: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", texts.join(","))
            }
            "v:" => write!(f, "[={rest}]"),
            _ => write!(f, "[{rest}]"),
        }
    }
}

/// `.spec.containers[name="x"].image`
pub(super) fn print(path: &[Element]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_printed() {
        let check = |text: &str, canonical: &str, printed: &str| {
            let element = Element::parse(text).unwrap().unwrap();
            assert_eq!((element.as_str(), element.to_string().as_str()), (canonical, printed));
        };
        check("f:spec", "f:spec", ".spec");
        check("f:kubernetes.io/x", "f:kubernetes.io/x", ".kubernetes.io/x");
        check(r#"k:{"name":"web"}"#, r#"k:{"name":"web"}"#, r#"[name="web"]"#);
        check(
            r#"k:{"protocol": "TCP", "port": 80}"#,
            r#"k:{"port":80,"protocol":"TCP"}"#,
            r#"[port=80,protocol="TCP"]"#,
        );
        check(r#"v:"x/y""#, r#"v:"x/y""#, r#"[="x/y"]"#);
        check("v:3", "v:3", "[=3]");
        check("i:0", "i:0", "[0]");
    }

    #[test]
    fn what_is_malformed_is_refused_and_what_is_new_passed_over() {
        for text in ["", "f", "spec", "k:name", "v:", "i:x", "ä:"] {
            assert!(Element::parse(text).is_err(), "{text}");
        }
        assert_eq!(Element::parse("z:later"), Ok(None));
    }
}
