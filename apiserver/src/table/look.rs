//! Looking into an object for the words of its cells.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::human_duration;

/// An object and the moment at which it is looked at.
pub(super) struct Look<'a> {
    pub(super) object: &'a Value,
    pub(super) now: Timestamp,
}

impl<'a> Look<'a> {
    pub(super) fn name(&self) -> Value {
        json!(text(self.object, "metadata.name"))
    }

    pub(super) fn age(&self) -> Value {
        json!(self.since(text(self.object, "metadata.creationTimestamp")))
    }

    /// How long ago `time` was.
    pub(super) fn since(&self, time: &str) -> String {
        match time.parse::<Timestamp>() {
            Ok(time) => human_duration(self.now.as_second() - time.as_second()),
            Err(_) => "<unknown>".to_owned(),
        }
    }

    pub(super) fn text(&self, path: &str) -> &'a str {
        text(self.object, path)
    }

    /// The text, or `<none>` when there is none.
    pub(super) fn or_none(&self, path: &str) -> Value {
        json!(or(self.text(path), "<none>"))
    }

    pub(super) fn integer(&self, path: &str) -> i64 {
        at(self.object, path).as_i64().unwrap_or_default()
    }

    pub(super) fn at(&self, path: &str) -> &'a Value {
        at(self.object, path)
    }

    pub(super) fn items(&self, path: &str) -> &'a [Value] {
        items(self.object, path)
    }

    /// How many entries a list or a map has.
    pub(super) fn count(&self, path: &str) -> usize {
        match self.at(path) {
            Value::Array(items) => items.len(),
            Value::Object(entries) => entries.len(),
            _ => 0,
        }
    }

    /// The names and the images of a pod template's containers.
    pub(super) fn containers(&self, path: &str) -> [Value; 2] {
        let join = |field: &str| {
            let values: Vec<&str> = self.items(path).iter().map(|container| text(container, field)).collect();
            json!(values.join(","))
        };
        [join("name"), join("image")]
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.at("metadata.deletionTimestamp").is_string()
    }

    /// Whether the condition of that type is `True`.
    pub(super) fn has_condition(&self, kind: &str) -> bool {
        self.items("status.conditions")
            .iter()
            .any(|condition| condition["type"] == kind && condition["status"] == "True")
    }
}

/// The value at a path of field names, or null.
pub(super) fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, name| &value[name])
}

pub(super) fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

pub(super) fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// A string or a number as it reads; nothing for null.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(value: &Value) -> String {
    let Some(entries) = value.as_object().filter(|entries| !entries.is_empty()) else {
        return "<none>".to_owned();
    };
    let mut texts: Vec<String> = entries.iter().map(|(name, value)| format!("{name}={}", plain(value))).collect();
    texts.sort_unstable();
    texts.join(",")
}

/// A label selector in the words of a query, or `<none>`.
pub(super) fn selector(value: &Value) -> String {
    let mut texts: Vec<String> = value["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", plain(value)))
        .collect();
    texts.sort_unstable();
    for expression in items(value, "matchExpressions") {
        let key = text(expression, "key");
        let values: Vec<String> = items(expression, "values").iter().map(plain).collect();
        let values = values.join(",");
        texts.push(match text(expression, "operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        });
    }
    if texts.is_empty() { "<none>".to_owned() } else { texts.join(",") }
}

/// `True`, `False`, or `<unset>`.
pub(super) fn truth(value: &Value) -> &'static str {
    match value.as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
}

/// At most three, then how many more there are.
pub(super) fn first_three(list: &[String]) -> String {
    match list.len() {
        0..=3 => list.join(","),
        more => format!("{} + {} more...", list[..3].join(","), more - 3),
    }
}
