//! ConfigMaps and Secrets, read from the API when a container or volume needs them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use quorate_runtime::client::Client;
use quorate_runtime::resources;

/// The data of a ConfigMap; `None` when it does not exist.
///
/// # Errors
/// The server's answer, when it is another one than "not found".
pub async fn config_map(
    client: &dyn Client,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
    let object = match client.get(&resources::config_maps(), Some(namespace), name).await {
        Ok(object) => object,
        Err(status) if status.is_not_found() => return Ok(None),
        Err(status) => return Err(status.message),
    };
    let map = object.typed::<core::ConfigMap>().map_err(|error| error.to_string())?;
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
    Ok(Some(text.chain(binary).collect()))
}

/// The data of a Secret; `None` when it does not exist.
///
/// # Errors
/// The server's answer, when it is another one than "not found".
pub async fn secret(
    client: &dyn Client,
    namespace: &str,
    name: &str,
) -> Result<Option<BTreeMap<String, Vec<u8>>>, String> {
    let object = match client.get(&resources::secrets(), Some(namespace), name).await {
        Ok(object) => object,
        Err(status) if status.is_not_found() => return Ok(None),
        Err(status) => return Err(status.message),
    };
    let secret = object.typed::<core::Secret>().map_err(|error| error.to_string())?;
    Ok(Some(secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()))
}
