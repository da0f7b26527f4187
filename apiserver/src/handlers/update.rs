//! PUT of an object or a subresource.

use http::StatusCode;

use super::{body, render};
use crate::http::{Answer, ApiRequest};
use crate::registry::context::RequestContext;
use crate::registry::{Registry, Target};

pub(super) async fn update(
    registry: &Registry,
    context: &RequestContext,
    target: Target<'_>,
    request: &ApiRequest,
) -> Answer {
    let value = body::object(context, body::expected(target.def, target.subresource), request)?;
    let written = registry.update(context, target, value).await?;
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    if target.subresource == "scale" {
        return render::plain(code, &written.object, request);
    }
    super::answer(target.def, code, &written.object, request)
}
