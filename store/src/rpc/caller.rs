//! Who calls: what a request says of its caller, made a handle on the store that may do
//! what the caller may.

use std::sync::Arc;

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::wants_leader;
use crate::error::StoreError;
use crate::node::{Credentials, Store};

/// Where clients put their token: those of gRPC, and those of the JSON gateway.
const TOKEN_FIELDS: [&str; 2] = ["token", "authorization"];

/// Shows that a request came through a JSON gateway: the certificate is the gateway's.
const GATEWAY_FIELD: &str = "grpcgateway-accept";

/// The common name of the certificate that the connection's client has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommonName(pub(crate) Arc<str>);

impl CommonName {
    /// Of a certificate that was verified.
    pub(crate) fn of(certificate: &[u8]) -> Option<CommonName> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
        (!name.is_empty()).then(|| CommonName(name.into()))
    }
}

/// The handle that serves a request: it may do what the caller may. Refuses a request that
/// wants a leader where none is known.
pub(super) fn admit<T>(store: &Store, request: &Request<T>) -> Result<Store, Status> {
    if wants_leader(request.metadata()) && !store.has_leader() {
        return Err(StoreError::NoLeader.into());
    }
    let common_name = request.extensions().get::<CommonName>();
    Ok(store.for_client(credentials(request.metadata(), common_name)))
}

/// The same for a request of HTTP that is not one of gRPC: its token is in `authorization`.
pub(super) fn admit_http(store: &Store, headers: &http::HeaderMap) -> Store {
    store.for_client(credentials(&MetadataMap::from_headers(headers.clone()), None))
}

fn credentials(metadata: &MetadataMap, common_name: Option<&CommonName>) -> Credentials {
    let token = TOKEN_FIELDS.iter().find_map(|field| metadata.get(*field));
    // One that is not text is no token, and not nothing either.
    let token = token.map(|token| token.to_str().unwrap_or_default().to_owned());
    let own = common_name.filter(|_| metadata.get(GATEWAY_FIELD).is_none());
    Credentials { token, common_name: own.map(|name| name.0.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_where_clients_put_them() {
        let check =
            |fields: &[(&'static str, &'static str)], name: Option<&str>, token: Option<&str>, own: Option<&str>| {
                let mut metadata = MetadataMap::new();
                for (field, value) in fields {
                    metadata.insert(*field, value.parse().unwrap());
                }
                let name = name.map(|name| CommonName(name.into()));
                let found = credentials(&metadata, name.as_ref());
                assert_eq!((found.token.as_deref(), found.common_name.as_deref()), (token, own), "{fields:?}");
            };
        check(&[], None, None, None);
        check(&[("token", "t")], None, Some("t"), None);
        check(&[("authorization", "t")], Some("cn"), Some("t"), Some("cn"));
        check(&[("authorization", "a"), ("token", "t")], None, Some("t"), None);
        check(&[("grpcgateway-accept", "*/*")], Some("cn"), None, None);
        check(&[], Some("cn"), None, Some("cn"));
    }
}
