//! Which form of an answer a client takes, and which form its body has.
//!
//! Bodies may be JSON, YAML or protobuf, answers are JSON or protobuf. As upstream, what
//! cannot be served is passed over: tables have no protobuf form, so a client that asks for
//! a table in protobuf gets its next wish.

use quorate_proto::status::Status;

use crate::schema::PROTOBUF;

/// What an answer says about objects.
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

/// How an answer is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Json,
    Protobuf,
}

/// What a client gets of what it takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    pub form: Form,
    pub encoding: Encoding,
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

    /// The alternatives of a header, best first: by `q`, then the more specific, then in
    /// their order.
    pub fn parse_all(header: &str) -> Vec<Self> {
        let mut all: Vec<Self> = header.split(',').filter(|part| !part.trim().is_empty()).map(Self::parse).collect();
        // A stable sort keeps the client's order among equals.
        all.sort_by_key(|media| {
            (std::cmp::Reverse(media.quality_thousandths()), media.essence == "*/*", media.essence.ends_with("/*"))
        });
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

    fn takes(&self, encoding: Encoding) -> bool {
        matches!(self.essence.as_str(), "application/*" | "*/*") || self.essence == encoding.media_type()
    }
}

impl Encoding {
    /// In the order in which a wildcard chooses.
    const ALL: [Self; 2] = [Self::Json, Self::Protobuf];

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => PROTOBUF,
        }
    }
}

/// Chooses the form and the encoding of an answer about objects.
///
/// # Errors
/// 406 NotAcceptable when no alternative can be served.
pub fn negotiate(accept: Option<&str>) -> Result<Negotiated, Status> {
    let accept = accept.unwrap_or("").trim();
    if accept.is_empty() {
        return Ok(Negotiated::default());
    }
    choices(accept).next().ok_or_else(|| not_acceptable(&Encoding::ALL.map(Encoding::media_type)))
}

/// Chooses the encoding of an answer that says why there is no other: the first one that
/// the client takes without a transformation, else JSON.
pub fn error_encoding(accept: Option<&str>) -> Encoding {
    let choice = choices(accept.unwrap_or("")).find(|choice| choice.form == Form::Object);
    choice.unwrap_or_default().encoding
}

/// Whether a client takes plain JSON: there are documents in no other encoding.
///
/// # Errors
/// 406 NotAcceptable.
pub fn check_takes_json(accept: Option<&str>) -> Result<(), Status> {
    let accept = accept.unwrap_or("").trim();
    let json = Negotiated::default();
    if accept.is_empty() || choices(accept).any(|choice| choice == json) {
        return Ok(());
    }
    Err(not_acceptable(&[Encoding::Json.media_type()]))
}

/// Everything in an Accept header that can be served, best first.
fn choices(accept: &str) -> impl Iterator<Item = Negotiated> {
    MediaType::parse_all(accept).into_iter().flat_map(|media| {
        Encoding::ALL.into_iter().filter_map(move |encoding| {
            let form = if media.takes(encoding) { form(&media, encoding)? } else { return None };
            Some(Negotiated { form, encoding })
        })
    })
}

/// The form that `media` asks for; `None` when there is none such in this encoding.
fn form(media: &MediaType, encoding: Encoding) -> Option<Form> {
    if !matches!(media.parameter("stream"), None | Some("" | "watch")) {
        return None;
    }
    let wish = ["as", "g", "v"].map(|name| media.parameter(name));
    match wish {
        [None, None, None] => Some(Form::Object),
        [Some(kind), Some("meta.k8s.io"), Some(version @ ("v1" | "v1beta1"))] => {
            let version = version.to_owned();
            match kind {
                "Table" => (encoding == Encoding::Json).then_some(Form::Table { version }),
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Some(Form::PartialObjectMetadata { version }),
                _ => None,
            }
        }
        _ => None,
    }
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

    const METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";

    fn table(version: &str) -> Form {
        Form::Table { version: version.to_owned() }
    }

    fn metadata(version: &str) -> Form {
        Form::PartialObjectMetadata { version: version.to_owned() }
    }

    #[test]
    fn the_best_servable_form_is_chosen() {
        use Encoding::{Json, Protobuf};

        #[track_caller]
        fn check(accept: &str, form: Form, encoding: Encoding) {
            assert_eq!(negotiate(Some(accept)), Ok(Negotiated { form, encoding }), "{accept}");
        }
        check("", Form::Object, Json);
        check("*/*", Form::Object, Json);
        check("application/*", Form::Object, Json);
        check(TABLE, table("v1"), Json);
        check(
            "application/json;q=0.1, application/json;as=Table;g=meta.k8s.io;v=v1beta1;q=0.9",
            table("v1beta1"),
            Json,
        );
        check("application/json;stream=watch", Form::Object, Json);
        check("application/vnd.kubernetes.protobuf", Form::Object, Protobuf);
        check("Application/Vnd.Kubernetes.Protobuf; q=1", Form::Object, Protobuf);
        check("application/vnd.kubernetes.protobuf;stream=watch", Form::Object, Protobuf);
        check("application/vnd.kubernetes.protobuf,application/json", Form::Object, Protobuf);
        check("application/json, application/vnd.kubernetes.protobuf", Form::Object, Json);
        check("*/*, application/vnd.kubernetes.protobuf", Form::Object, Protobuf);
        check("application/vnd.kubernetes.protobuf;q=0.4, application/json;q=0.5", Form::Object, Json);
        check("application/vnd.kubernetes.protobuf;q=0, application/json", Form::Object, Json);
        check("application/cbor, application/vnd.kubernetes.protobuf", Form::Object, Protobuf);
        check(METADATA, metadata("v1"), Protobuf);
        check("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1beta1", metadata("v1beta1"), Json);
        // Tables have no protobuf form: the next alternative counts.
        check(&format!("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,{TABLE}"), table("v1"), Json);
        check(
            "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/vnd.kubernetes.protobuf",
            Form::Object,
            Protobuf,
        );
        assert_eq!(negotiate(None), Ok(Negotiated::default()));
    }

    #[test]
    fn what_cannot_be_written_is_406() {
        for accept in [
            "text/plain",
            "application/json;q=0",
            "application/json;stream=follow",
            "application/json;as=Table;g=meta.k8s.io;v=v9",
            "application/json;as=Chair;g=meta.k8s.io;v=v1",
            "application/json;as=Table",
            "application/json;g=meta.k8s.io;v=v1",
            "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1",
        ] {
            let status = negotiate(Some(accept)).unwrap_err();
            assert_eq!((status.code, status.reason.as_str()), (406, "NotAcceptable"), "{accept}");
            assert_eq!(
                status.message,
                "only the following media types are accepted: application/json, application/vnd.kubernetes.protobuf"
            );
        }
    }

    #[test]
    fn errors_are_never_transformed() {
        for (accept, expected) in [
            ("application/vnd.kubernetes.protobuf,application/json", Encoding::Protobuf),
            (TABLE, Encoding::Json),
            (METADATA, Encoding::Json),
            ("application/vnd.kubernetes.protobuf;stream=watch", Encoding::Protobuf),
            ("text/plain", Encoding::Json),
            ("", Encoding::Json),
        ] {
            assert_eq!(error_encoding(Some(accept)), expected, "{accept}");
        }
        assert_eq!(error_encoding(None), Encoding::Json);
    }

    #[test]
    fn some_documents_are_json_alone() {
        for accept in [None, Some(""), Some("*/*"), Some("application/vnd.kubernetes.protobuf, application/json")] {
            assert_eq!(check_takes_json(accept), Ok(()), "{accept:?}");
        }
        let refused = check_takes_json(Some("application/vnd.kubernetes.protobuf")).unwrap_err();
        assert_eq!(refused.message, "only the following media types are accepted: application/json");
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
