//! Which form of an answer a client takes, and which form its body has.
//!
//! Bodies may be JSON, YAML or protobuf, answers are JSON; a client that takes nothing
//! but protobuf is told so in upstream's words, and falls back or fails clearly.

use quorate_proto::status::Status;

use crate::schema::PROTOBUF;

/// How an answer about objects is written; the encoding is always JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// The objects as they are.
    #[default]
    Object,
    /// `meta.k8s.io` Table, in the named version: `v1` or `v1beta1`.
    Table { version: String },
    /// `meta.k8s.io` PartialObjectMetadata, or its list: `v1` or `v1beta1`.
    PartialObjectMetadata { version: String },
}

/// One alternative of an Accept header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MediaType {
    /// `application/json`, in lower case.
    pub essence: String,
    pub parameters: Vec<(String, String)>,
}

impl MediaType {
    /// Reads one media type; parameters that are not `name=value` are left out.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let essence = parts.next().unwrap_or("").to_ascii_lowercase();
        let parameters = parts
            .filter_map(|part| part.split_once('='))
            .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
            .collect();
        Self { essence, parameters }
    }

    /// The alternatives of a header, best first: by `q`, then in their order.
    pub fn parse_all(header: &str) -> Vec<Self> {
        let mut all: Vec<Self> = header.split(',').filter(|part| !part.trim().is_empty()).map(Self::parse).collect();
        // A stable sort keeps the client's order among equals.
        all.sort_by_key(|media| std::cmp::Reverse(media.quality_thousandths()));
        all.retain(|media| media.quality_thousandths() > 0);
        all
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }

    fn quality_thousandths(&self) -> u32 {
        let quality: f64 = self.parameter("q").and_then(|text| text.parse().ok()).unwrap_or(1.0);
        // The clamp keeps the cast exact.
        (quality.clamp(0.0, 1.0) * 1000.0) as u32
    }

    fn takes_json(&self) -> bool {
        matches!(self.essence.as_str(), "application/json" | "application/*" | "*/*")
    }
}

/// Chooses the form of an answer about objects. `stream` is true for watches.
///
/// # Errors
/// 406 NotAcceptable when no alternative can be served.
pub fn response_form(accept: Option<&str>, stream: bool) -> Result<Form, Status> {
    let accept = accept.unwrap_or("").trim();
    if accept.is_empty() {
        return Ok(Form::Object);
    }
    let alternatives = MediaType::parse_all(accept);
    for media in alternatives.iter().filter(|media| media.takes_json()) {
        if media.parameter("stream").is_some_and(|value| !stream || value != "watch") {
            continue;
        }
        let group = media.parameter("g").unwrap_or("");
        let version = media.parameter("v").unwrap_or("").to_owned();
        let known = group == "meta.k8s.io" && matches!(version.as_str(), "v1" | "v1beta1");
        match media.parameter("as") {
            None => return Ok(Form::Object),
            Some("Table") if known => return Ok(Form::Table { version }),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if known => {
                return Ok(Form::PartialObjectMetadata { version });
            }
            Some(_) => {}
        }
    }
    Err(not_acceptable(&["application/json", "application/json;stream=watch"]))
}

/// Upstream's answer to an Accept header that names nothing we write.
pub fn not_acceptable(offered: &[&str]) -> Status {
    Status::failure(
        406,
        "NotAcceptable",
        format!("only the following media types are accepted: {}", offered.join(", ")),
    )
}

/// How the body of a write is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    Json,
    Yaml,
    Protobuf,
}

/// Reads the Content-Type of a create, an update or a delete. None sent means JSON.
///
/// # Errors
/// 415 UnsupportedMediaType.
pub fn body_format(content_type: Option<&str>) -> Result<BodyFormat, Status> {
    match MediaType::parse(content_type.unwrap_or("")).essence.as_str() {
        "" | "application/json" => Ok(BodyFormat::Json),
        "application/yaml" => Ok(BodyFormat::Yaml),
        PROTOBUF => Ok(BodyFormat::Protobuf),
        _ => Err(unsupported_media_type(&["application/json", "application/yaml", PROTOBUF])),
    }
}

/// Upstream's answer to a Content-Type that is not among `accepted`.
pub fn unsupported_media_type(accepted: &[&str]) -> Status {
    Status::failure(
        415,
        "UnsupportedMediaType",
        format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";

    #[track_caller]
    fn check(accept: &str, stream: bool, expected: Form) {
        assert_eq!(response_form(Some(accept), stream), Ok(expected), "{accept}");
    }

    #[test]
    fn the_best_servable_form_is_chosen() {
        let table = Form::Table { version: "v1".to_owned() };
        check(TABLE, false, table.clone());
        check("application/json;q=0.1, application/json;as=Table;g=meta.k8s.io;v=v1;q=0.9", false, table);
        check("*/*", false, Form::Object);
        check("application/vnd.kubernetes.protobuf, application/json", false, Form::Object);
        check("application/json;stream=watch", true, Form::Object);
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json",
            false,
            Form::PartialObjectMetadata { version: "v1".to_owned() },
        );
        assert_eq!(response_form(None, false), Ok(Form::Object));
    }

    #[test]
    fn what_cannot_be_written_is_406() {
        for accept in [
            "application/vnd.kubernetes.protobuf",
            "text/plain",
            "application/json;q=0",
            "application/json;as=Table;g=meta.k8s.io;v=v9",
        ] {
            assert_eq!(response_form(Some(accept), false).unwrap_err().code, 406, "{accept}");
        }
    }

    #[test]
    fn bodies_are_json_yaml_or_protobuf() {
        assert_eq!(body_format(None), Ok(BodyFormat::Json));
        assert_eq!(body_format(Some("application/json; charset=utf-8")), Ok(BodyFormat::Json));
        assert_eq!(body_format(Some("application/yaml")), Ok(BodyFormat::Yaml));
        assert_eq!(body_format(Some("application/vnd.kubernetes.protobuf")), Ok(BodyFormat::Protobuf));
        assert_eq!(body_format(Some("application/cbor")).unwrap_err().code, 415);
    }
}
