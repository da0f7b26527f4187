//! GET of one object.

use http::StatusCode;

use super::render;
use crate::http::{Answer, ApiRequest};
use crate::registry::status::not_supported;
use crate::registry::{Registry, Target};
use crate::schema::Verb;

pub(super) async fn get(registry: &Registry, target: Target<'_>, request: &ApiRequest) -> Answer {
    let def = target.def;
    let readable = match target.subresource {
        "" => def.has_verb(Verb::Get),
        name => def.subresource(name).is_some_and(|sub| sub.verbs.contains(&Verb::Get)),
    };
    if !readable {
        return Err(not_supported(def, "get"));
    }
    if target.subresource == "scale" {
        let scale = registry.get_scale(target).await?;
        return render::plain(StatusCode::OK, &scale, request);
    }
    let object = registry.get(target, request.query.text("resourceVersion")).await?;
    super::answer(def, StatusCode::OK, &object, request)
}
