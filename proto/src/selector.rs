//! Label and field selectors, as query strings and as `LabelSelector` objects.
//!
//! Source: API concepts, "Labels and Selectors", "Field Selectors"; error texts
//! follow apimachinery's parsers.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A conjunction of requirements on labels. Empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<LabelRequirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct LabelRequirement {
    key: String,
    test: LabelTest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelTest {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

/// The selector's text does not parse. Display is the message for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseSelectorError(String);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct SelectorObject {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<ExpressionObject>,
}

#[derive(Deserialize)]
struct ExpressionObject {
    key: String,
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl LabelSelector {
    /// Every pair must be present: the form of `spec.selector` of a Service.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Self {
        let requirements = labels
            .into_iter()
            .map(|(key, value)| LabelRequirement { key: key.clone(), test: LabelTest::In(vec![value.clone()]) })
            .collect();
        Self { requirements }
    }

    /// Reads the JSON of a `meta/v1 LabelSelector`.
    ///
    /// # Errors
    /// On an unknown operator, or on values that the operator does not take.
    pub fn from_object(object: &serde_json::Value) -> Result<Self, ParseSelectorError> {
        let object: SelectorObject =
            serde_json::from_value(object.clone()).map_err(|error| ParseSelectorError(error.to_string()))?;
        let mut selector = Self::from_labels(&object.match_labels);
        for expression in object.match_expressions {
            let has_values = !expression.values.is_empty();
            let test = match (expression.operator.as_str(), has_values) {
                ("In", true) => LabelTest::In(expression.values),
                ("NotIn", true) => LabelTest::NotIn(expression.values),
                ("Exists", false) => LabelTest::Exists,
                ("DoesNotExist", false) => LabelTest::DoesNotExist,
                ("In" | "NotIn", false) => {
                    return Err(ParseSelectorError(
                        "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty".to_owned(),
                    ));
                }
                ("Exists" | "DoesNotExist", true) => {
                    return Err(ParseSelectorError(
                        "values: Invalid value: values set must be empty for exists and does not exist".to_owned(),
                    ));
                }
                (operator, _) => {
                    return Err(ParseSelectorError(format!("{operator:?} is not a valid label selector operator")));
                }
            };
            selector.requirements.push(LabelRequirement { key: expression.key, test });
        }
        Ok(selector)
    }

    /// Reads a query string's form: `app=web,tier in (a, b),!canary`.
    ///
    /// # Errors
    /// With upstream's words for what was found where.
    pub fn parse(text: &str) -> Result<Self, ParseSelectorError> {
        let mut parser = Parser { rest: text.trim(), text };
        let mut requirements = Vec::new();
        while !parser.rest.is_empty() {
            requirements.push(parser.requirement()?);
            parser.skip_spaces();
            if parser.rest.is_empty() {
                break;
            }
            parser.expect(',')?;
            parser.skip_spaces();
            if parser.rest.is_empty() {
                return Err(parser.unexpected("identifier after ','"));
            }
        }
        Ok(Self { requirements })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match &requirement.test {
                LabelTest::In(values) => value.is_some_and(|value| values.contains(value)),
                LabelTest::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                LabelTest::Exists => value.is_some(),
                LabelTest::DoesNotExist => value.is_none(),
                LabelTest::GreaterThan(bound) => number().is_some_and(|number| number > *bound),
                LabelTest::LessThan(bound) => number().is_some_and(|number| number < *bound),
            }
        })
    }
}

impl std::fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts: Vec<String> = self
            .requirements
            .iter()
            .map(|LabelRequirement { key, test }| match test {
                LabelTest::In(values) if values.len() == 1 => format!("{key}={}", values[0]),
                LabelTest::In(values) => format!("{key} in ({})", values.join(",")),
                LabelTest::NotIn(values) if values.len() == 1 => format!("{key}!={}", values[0]),
                LabelTest::NotIn(values) => format!("{key} notin ({})", values.join(",")),
                LabelTest::Exists => key.clone(),
                LabelTest::DoesNotExist => format!("!{key}"),
                LabelTest::GreaterThan(bound) => format!("{key}>{bound}"),
                LabelTest::LessThan(bound) => format!("{key}<{bound}"),
            })
            .collect();
        f.write_str(&texts.join(","))
    }
}

struct Parser<'a> {
    rest: &'a str,
    text: &'a str,
}

impl Parser<'_> {
    fn requirement(&mut self) -> Result<LabelRequirement, ParseSelectorError> {
        self.skip_spaces();
        let negated = self.eat("!");
        self.skip_spaces();
        let key = self.word();
        if key.is_empty() {
            return Err(self.unexpected("identifier"));
        }
        check_label_key(&key)?;
        self.skip_spaces();
        if negated {
            return Ok(LabelRequirement { key, test: LabelTest::DoesNotExist });
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(LabelRequirement { key, test: LabelTest::Exists });
        }
        let test = if self.eat("!=") {
            LabelTest::NotIn(vec![self.value()?])
        } else if self.eat("==") || self.eat("=") {
            LabelTest::In(vec![self.value()?])
        } else if self.eat(">") {
            LabelTest::GreaterThan(self.number()?)
        } else if self.eat("<") {
            LabelTest::LessThan(self.number()?)
        } else {
            match self.word().as_str() {
                "in" => LabelTest::In(self.values()?),
                "notin" => LabelTest::NotIn(self.values()?),
                _ => return Err(self.unexpected("in, notin, =, ==, !=, gt, lt")),
            }
        };
        Ok(LabelRequirement { key, test })
    }

    fn values(&mut self) -> Result<Vec<String>, ParseSelectorError> {
        self.skip_spaces();
        self.expect('(')?;
        let mut values = vec![self.value()?];
        loop {
            self.skip_spaces();
            if self.eat(")") {
                return Ok(values);
            }
            self.expect(',')?;
            values.push(self.value()?);
        }
    }

    fn value(&mut self) -> Result<String, ParseSelectorError> {
        self.skip_spaces();
        let value = self.word();
        check_label_value(&value)?;
        Ok(value)
    }

    fn number(&mut self) -> Result<i64, ParseSelectorError> {
        self.skip_spaces();
        let word = self.word();
        word.parse().map_err(|_| {
            ParseSelectorError(format!(
                "values[0]: Invalid value: {word:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn word(&mut self) -> String {
        let end = self.rest.find(|c: char| c.is_whitespace() || "!=<>,()".contains(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, token: char) -> Result<(), ParseSelectorError> {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.unexpected(&format!("{token:?}"))),
        }
    }

    fn unexpected(&self, expected: &str) -> ParseSelectorError {
        ParseSelectorError(format!(
            "unable to parse requirement: found '{}', expected: {expected} in {:?}",
            self.rest, self.text
        ))
    }
}

/// A conjunction of `path=value` and `path!=value`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    requirements: Vec<FieldRequirement>,
}

/// One term of a field selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// As written by the client: `status.phase`.
    pub path: String,
    pub value: String,
    /// `!=` instead of `=`.
    pub negated: bool,
}

impl FieldSelector {
    /// Reads `a.b=c,d!=e`; `\,`, `\=` and `\\` stand for themselves.
    ///
    /// # Errors
    /// With upstream's text when a term has no operator.
    pub fn parse(text: &str) -> Result<Self, ParseSelectorError> {
        let mut requirements = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let (path, value, negated) = split_term(term)
                .ok_or_else(|| ParseSelectorError(format!("invalid selector: '{text}'; can't understand '{term}'")))?;
            requirements.push(FieldRequirement { path: path.to_owned(), value: unescape(value), negated });
        }
        Ok(Self { requirements })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.requirements
    }

    /// The value that the selector demands of `path`: `metadata.name=web` → `web`.
    pub fn exact(&self, path: &str) -> Option<&str> {
        self.requirements
            .iter()
            .find(|requirement| requirement.path == path && !requirement.negated)
            .map(|requirement| requirement.value.as_str())
    }

    /// Whether it holds when `value_of` gives an object's value of each path.
    pub fn matches<'a>(&self, value_of: impl Fn(&str) -> std::borrow::Cow<'a, str>) -> bool {
        self.requirements
            .iter()
            .all(|requirement| (value_of(&requirement.path) == requirement.value) != requirement.negated)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(term: &str) -> Option<(&str, &str, bool)> {
    let mut escaped = false;
    for (index, c) in term.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '!' if term[index..].starts_with("!=") => return Some((&term[..index], &term[index + 2..], true)),
            '=' if term[index..].starts_with("==") => return Some((&term[..index], &term[index + 2..], false)),
            '=' => return Some((&term[..index], &term[index + 1..], false)),
            _ => {}
        }
    }
    None
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(c) = characters.next() {
        match c {
            '\\' => out.extend(characters.next()),
            _ => out.push(c),
        }
    }
    out
}

/// Checks a label's key: an optional DNS prefix and a name of at most 63 characters.
///
/// # Errors
/// With upstream's explanation.
pub fn check_label_key(key: &str) -> Result<(), ParseSelectorError> {
    const NAME_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
    let bad = |why: &str| Err(ParseSelectorError(format!("key: Invalid value: {key:?}: {why}")));
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    match prefix {
        Some("") => return bad("prefix part must be non-empty"),
        Some(prefix) if prefix.len() > 253 || !is_dns_subdomain(prefix) => {
            return bad(
                "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            );
        }
        _ => {}
    }
    if name.is_empty() {
        return bad("name part must be non-empty");
    }
    if name.len() > 63 {
        return bad("name part must be no more than 63 characters");
    }
    if !is_label_word(name) { bad(NAME_RULE) } else { Ok(()) }
}

/// Checks a label's value: empty, or at most 63 characters of a label's alphabet.
///
/// # Errors
/// With upstream's explanation.
pub fn check_label_value(value: &str) -> Result<(), ParseSelectorError> {
    let bad = |why: &str| Err(ParseSelectorError(format!("values[0]: Invalid value: {value:?}: {why}")));
    if value.len() > 63 {
        return bad("must be no more than 63 characters");
    }
    if !value.is_empty() && !is_label_word(value) {
        return bad(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
        );
    }
    Ok(())
}

fn is_label_word(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// RFC 1123, in lower case, labels joined by dots. Length is the caller's to check.
pub fn is_dns_subdomain(name: &str) -> bool {
    name.split('.').all(is_dns_label)
}

/// RFC 1123, in lower case. Length is the caller's to check.
pub fn is_dns_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[track_caller]
    fn check(selector: &str, pairs: &[(&str, &str)], expected: bool) {
        let parsed = LabelSelector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
        assert_eq!(parsed.matches(&labels(pairs)), expected, "{selector} on {pairs:?}");
        let again = LabelSelector::parse(&parsed.to_string()).unwrap();
        assert_eq!(parsed, again, "{selector} prints as it parses");
    }

    #[test]
    fn label_selectors_match_as_kubernetes_does() {
        check("", &[("a", "b")], true);
        check("a=b", &[("a", "b")], true);
        check("a==b", &[("a", "c")], false);
        check("a!=b", &[], true);
        check("a!=b", &[("a", "b")], false);
        check("a in (b, c)", &[("a", "c")], true);
        check("a notin (b,c)", &[], true);
        check("a notin (b,c),d", &[("d", "")], true);
        check("a", &[("a", "")], true);
        check("!a", &[("a", "")], false);
        check("a,!b", &[("a", "1")], true);
        check("a>3", &[("a", "4")], true);
        check("a<3", &[("a", "x")], false);
        check("a=", &[("a", "")], true);
        check("example.com/a=b", &[("example.com/a", "b")], true);
    }

    #[test]
    fn broken_label_selectors_are_refused() {
        for text in ["=b", "a=b,", ",a", "a in b", "a in (b", "a in ()x", "a ? b", "-a=b", "a=b c", "a=b!", "/a", "a/"]
        {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn selector_objects_are_conjunctions() {
        let selector = LabelSelector::from_object(&serde_json::json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["db"]}]
        }))
        .unwrap();
        assert!(selector.matches(&labels(&[("app", "web")])));
        assert!(!selector.matches(&labels(&[("app", "web"), ("tier", "db")])));
        let bad = serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In"}]});
        assert!(LabelSelector::from_object(&bad).is_err());
    }

    #[test]
    fn field_selectors_compare_text() {
        let selector = FieldSelector::parse("metadata.name=a\\,b,status.phase!=Running").unwrap();
        assert_eq!(selector.exact("metadata.name"), Some("a,b"));
        assert!(selector.matches(|path| if path == "metadata.name" { "a,b".into() } else { "Pending".into() }));
        assert!(!selector.matches(|path| if path == "metadata.name" { "a,b".into() } else { "Running".into() }));
        assert!(FieldSelector::parse("metadata.name").is_err());
    }
}
