//! Get, list and watch: served from memory, as new as the client asked for.

use std::sync::Arc;

use quorate_proto::object::Object;
use quorate_proto::status::{Status, StatusDetails};

use super::status::{invalid_list_options, not_found, of_storage};
use super::{Registry, Target, convert};
use crate::schema::ResourceDef;
use crate::storage::continue_token::ContinueToken;
use crate::storage::{ListRequest, StorageError, prefix_end};
use crate::watch_cache::{Selection, Watcher};

/// What a list asks for, in the words of the query string.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    pub labels: String,
    pub fields: String,
    pub resource_version: String,
    pub resource_version_match: String,
    /// 0 is no limit.
    pub limit: usize,
    pub continue_token: String,
}

/// What a watch asks for, in the words of the query string.
#[derive(Clone, Debug, Default)]
pub struct WatchQuery {
    pub labels: String,
    pub fields: String,
    pub resource_version: String,
    pub resource_version_match: String,
    pub send_initial_events: Option<bool>,
}

/// The items of a list, all true at `revision`.
#[derive(Clone, Debug)]
pub struct Listed {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    /// Empty when the list is complete.
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// A watch that has been accepted.
#[derive(Debug)]
pub struct Watching {
    /// Sent first, as ADDED.
    pub initial: Vec<Arc<Object>>,
    /// `initial` is to be followed by the bookmark that marks its end, at this revision.
    pub initial_end: Option<u64>,
    pub watcher: Watcher,
}

/// Fewer items than that are not read at a time for a list that selects among them.
const LEAST_PAGE: usize = 500;

impl Registry {
    /// Reads one object. `resource_version`: empty for the newest, `0` for whatever is at
    /// hand, else at least that new.
    ///
    /// # Errors
    /// `NotFound`, or a failure of the store.
    pub async fn get(&self, target: Target<'_>, resource_version: &str) -> Result<Arc<Object>, Status> {
        let cache = self.cache().of(target.def)?;
        self.fresh_enough(resource_version).await?;
        let object = cache.get(&target.relative_key()).ok_or_else(|| not_found(target.def, target.name))?;
        convert::from_storage(target.def, object)
    }

    /// Lists a resource in one namespace, or in all when `namespace` is empty.
    ///
    /// # Errors
    /// For options that contradict each other, for revisions that are gone or not there
    /// yet, and for failures of the store.
    pub async fn list(&self, def: &'static ResourceDef, namespace: &str, query: &ListQuery) -> Result<Listed, Status> {
        check_list(query)?;
        let selection = Selection::parse(def, Some(namespace), &query.labels, &query.fields)?;
        if !query.continue_token.is_empty() {
            let token =
                ContinueToken::decode(&query.continue_token).map_err(|error| Status::bad_request(error.to_string()))?;
            return self.list_on(def, &selection, query.limit, token).await;
        }
        if query.resource_version_match == "Exact" {
            let revision = parse_revision(&query.resource_version)?;
            return self.list_at(def, &selection, query.limit, "", revision).await;
        }
        self.fresh_enough(&query.resource_version).await?;
        self.list_cached(def, &selection, query.limit, "", None)
    }

    async fn list_on(
        &self,
        def: &'static ResourceDef,
        selection: &Selection,
        limit: usize,
        token: ContinueToken,
    ) -> Result<Listed, Status> {
        let Some(revision) = token.revision else {
            self.cache().catch_up().await?;
            return self.list_cached(def, selection, limit, &token.start, None);
        };
        let listed = self.list_at(def, selection, limit, &token.start, revision).await;
        listed.map_err(|status| {
            if !status.is_expired() {
                return status;
            }
            // The client may go on without consistency, and says so with this token.
            let token = ContinueToken { revision: None, start: token.start.clone() };
            let mut status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and \
                 now may show up in the list.",
            );
            status.metadata.continue_token = token.encode();
            status.with_details(StatusDetails::default())
        })
    }

    /// Lists at exactly `revision`: from memory when nothing has changed since, else from
    /// the store's history.
    async fn list_at(
        &self,
        def: &'static ResourceDef,
        selection: &Selection,
        limit: usize,
        start: &str,
        revision: u64,
    ) -> Result<Listed, Status> {
        self.cache().wait_for(revision).await?;
        if self.cache().of(def)?.last_change() <= revision {
            let listed = self.list_cached(def, selection, limit, start, Some(revision))?;
            // Unless it changed in between.
            if listed.revision == revision {
                return Ok(listed);
            }
        }
        let prefix = format!("{}/", def.storage_prefix);
        let below =
            if selection.namespace.is_empty() { prefix.clone() } else { format!("{prefix}{}/", selection.namespace) };
        let first = format!("{prefix}{start}");
        let mut request = ListRequest {
            start: if first > below { first } else { below.clone() },
            end: prefix_end(&below),
            revision: Some(revision),
            // A selection may leave out most of a page: pages stay large to the end.
            limit: if limit == 0 || selection.is_unselective() { limit } else { limit.max(LEAST_PAGE) },
        };
        let mut listed = Listed { items: Vec::new(), revision, continue_token: String::new(), remaining: None };
        loop {
            let page = match self.storage().list(request.clone()).await {
                Ok(page) => page,
                Err(error @ StorageError::Compacted { .. }) => return Err(of_storage(&error)),
                Err(error) => return Err(of_storage(&error)),
            };
            let Some(last) = page.items.last().map(|item| item.key.clone()) else { return Ok(listed) };
            let count = page.items.len();
            for (index, item) in page.items.into_iter().enumerate() {
                let object = Object::from_stored(&item.value, item.mod_revision)
                    .map_err(|error| Status::internal(format!("unable to decode {}: {error}", item.key)))?;
                if selection.matches(&object) {
                    listed.items.push(convert::from_storage(def, Arc::new(object))?);
                }
                let is_last = index + 1 == count && !page.more;
                if limit > 0 && listed.items.len() >= limit && !is_last {
                    let relative = item.key.strip_prefix(&prefix).unwrap_or(&item.key);
                    listed.continue_token = ContinueToken::after(relative, revision).encode();
                    listed.remaining = selection.is_unselective().then(|| page.count.saturating_sub(index as u64 + 1));
                    return Ok(listed);
                }
            }
            if !page.more {
                return Ok(listed);
            }
            request.start = format!("{last}\0");
        }
    }

    fn list_cached(
        &self,
        def: &'static ResourceDef,
        selection: &Selection,
        limit: usize,
        start: &str,
        at: Option<u64>,
    ) -> Result<Listed, Status> {
        let position = self.cache().position();
        let part = self.cache().of(def)?.list(selection, start, limit);
        let revision = match at {
            Some(revision) if part.last_change <= revision => revision,
            _ => position.max(part.last_change),
        };
        let continue_token =
            part.stopped_at.map(|last| ContinueToken::after(&last, revision).encode()).unwrap_or_default();
        let items =
            part.items.into_iter().map(|object| convert::from_storage(def, object)).collect::<Result<_, _>>()?;
        Ok(Listed { items, revision, continue_token, remaining: part.remaining })
    }

    /// Starts a watch in one namespace, or in all when `namespace` is empty.
    ///
    /// # Errors
    /// `Expired` when the revision asked for has left the window; for options that
    /// contradict each other; for failures of the store.
    pub async fn watch(
        &self,
        def: &'static ResourceDef,
        namespace: &str,
        query: &WatchQuery,
    ) -> Result<Watching, Status> {
        check_watch(query)?;
        let selection = Selection::parse(def, Some(namespace), &query.labels, &query.fields)?;
        let from_now = matches!(query.resource_version.as_str(), "" | "0");
        let wants_initial = query.send_initial_events.unwrap_or(from_now);
        if wants_initial {
            self.fresh_enough(&query.resource_version).await?;
            let (part, revision, watcher) = self.cache().snapshot_and_watch(def, selection)?;
            let initial =
                part.items.into_iter().map(|object| convert::from_storage(def, object)).collect::<Result<_, _>>()?;
            let initial_end = (query.send_initial_events == Some(true)).then_some(revision);
            return Ok(Watching { initial, initial_end, watcher });
        }
        let revision = if from_now {
            self.fresh_enough(&query.resource_version).await?;
            self.cache().position()
        } else {
            self.cache().ready().await;
            parse_revision(&query.resource_version)?
        };
        let watcher = self.cache().watch(def, selection, revision)?;
        Ok(Watching { initial: Vec::new(), initial_end: None, watcher })
    }

    async fn fresh_enough(&self, resource_version: &str) -> Result<(), Status> {
        match resource_version {
            "" => self.cache().catch_up().await.map(drop),
            "0" => self.cache().wait_for(0).await,
            text => self.cache().wait_for(parse_revision(text)?).await,
        }
    }
}

pub(super) fn parse_revision(text: &str) -> Result<u64, Status> {
    text.parse().map_err(|_| {
        Status::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

fn check_list(query: &ListQuery) -> Result<(), Status> {
    let forbidden = |why: &str| {
        Err(invalid_list_options("resourceVersionMatch", "FieldValueForbidden", format!("Forbidden: {why}")))
    };
    let version = query.resource_version.as_str();
    match query.resource_version_match.as_str() {
        "" => {}
        _ if version.is_empty() => {
            return forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        _ if !query.continue_token.is_empty() => {
            return forbidden("resourceVersionMatch is forbidden when continue is provided");
        }
        "Exact" if version == "0" => {
            return forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        "Exact" | "NotOlderThan" => {}
        other => return Err(unknown_match(other)),
    }
    if !query.continue_token.is_empty() && !matches!(version, "" | "0") {
        return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
    }
    Ok(())
}

fn check_watch(query: &WatchQuery) -> Result<(), Status> {
    let forbidden = |why: &str| {
        Err(invalid_list_options("resourceVersionMatch", "FieldValueForbidden", format!("Forbidden: {why}")))
    };
    match (query.send_initial_events, query.resource_version_match.as_str()) {
        (None, "") | (Some(_), "NotOlderThan") => Ok(()),
        (None, _) => forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"),
        (Some(_), "" | "Exact") => forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        (Some(_), other) => Err(unknown_match(other)),
    }
}

fn unknown_match(text: &str) -> Status {
    invalid_list_options(
        "resourceVersionMatch",
        "FieldValueNotSupported",
        format!("Unsupported value: {text:?}: supported values: \"Exact\", \"NotOlderThan\", \"\""),
    )
}
