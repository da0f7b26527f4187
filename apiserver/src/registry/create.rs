//! The verb create.

use std::sync::Arc;

use quorate_proto::codec;
use quorate_proto::object::Object;
use quorate_proto::status::{Status, StatusCause};
use rand::RngExt;
use serde_json::Value;

use super::allocate::Claims;
use super::context::RequestContext;
use super::ownership::{self, Ownership};
use super::status::{not_supported, of_storage};
use super::strategy::{self, child, has_generation, remove, set, strategy};
use super::validation::{Errors, check_metadata};
use super::{Registry, Target, convert};
use crate::admission::{Attributes, Operation};
use crate::schema::{Verb, apply_defaults};
use crate::storage::{Condition, StorageError, Transaction, Write};

/// Characters of generated names: no vowels and nothing that looks alike.
// Source: apimachinery, `util/rand`.
const NAME_CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// How often a generated name that is taken is made up anew.
const NAME_ATTEMPTS: usize = 8;

/// How often an address that another Service has just taken is chosen anew.
const CLAIM_ATTEMPTS: usize = 16;

/// Upstream cuts the prefix of a generated name to leave room for the rest in a label.
const GENERATE_NAME_PREFIX_LIMIT: usize = 58;

impl Registry {
    /// Creates `object`, which is in the version of `target.def` and has passed the schema.
    /// `target.name` is not looked at: the object says its name.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, `Forbidden`, or a failure of the store.
    pub async fn create(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        object: Value,
    ) -> Result<Arc<Object>, Status> {
        self.create_owned(context, target, object, Ownership::Track).await
    }

    /// As [`Registry::create`], also for what was applied.
    pub(super) async fn create_owned(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        object: Value,
        ownership: Ownership,
    ) -> Result<Arc<Object>, Status> {
        let def = target.def;
        if def.storage_prefix.is_empty() {
            let answer = self.create_virtual(context, target, object).await?;
            return Object::from_value(&answer, 0).map(Arc::new).map_err(Status::internal);
        }
        if !def.has_verb(Verb::Create) {
            return Err(not_supported(def, "create"));
        }
        let generates = object["metadata"]["name"].as_str().is_none_or(str::is_empty);
        let mut attempt = 1;
        loop {
            let outcome = self.create_once(context, target, object.clone(), ownership).await;
            match outcome {
                Err(status) if status.is_already_exists() && generates && attempt < NAME_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    /// Answers the creation of what is never stored: reviews, tokens.
    ///
    /// # Errors
    /// As the handler says; 405 when there is none.
    pub async fn create_virtual(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        object: Value,
    ) -> Result<Value, Status> {
        if target.def.resource == "bindings" {
            return self.create_binding(context, target.namespace, &object).await;
        }
        let handler = self.virtual_resource(target.def, "").ok_or_else(|| not_supported(target.def, "create"))?;
        handler.create(context, target.namespace, "", object).await
    }

    async fn create_once(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        mut object: Value,
        ownership: Ownership,
    ) -> Result<Arc<Object>, Status> {
        let def = target.def;
        let strategy = strategy(def);
        let given = remove(child(&mut object, "metadata"), "managedFields");
        stamp(&mut object, target)?;
        let name = strategy::text(&object["metadata"], "name").to_owned();
        if def.namespaced {
            self.check_namespace(target, &name).await?;
        }
        apply_defaults(def, &mut object);
        strategy.default(&mut object);
        // As upstream: what admission adds belongs to nobody.
        ownership::record_new(context, target, ownership, &mut object, given);
        if let Some(admission) = self.admission() {
            let attributes = attributes(context, target, &name, Operation::Create);
            admission.mutate(attributes, &mut object, None).await?;
            apply_defaults(def, &mut object);
            strategy.default(&mut object);
        }
        if def.subresource("status").is_some() && !keeps_status(def.resource) {
            set(&mut object, "status", serde_json::json!({}));
        }
        if has_generation(def) {
            set(child(&mut object, "metadata"), "generation", 1);
        }
        strategy.prepare_for_create(&mut object);
        if def.resource == "certificatesigningrequests" {
            sign_request(context, &mut object);
        }

        let mut attempt = 1;
        loop {
            let mut candidate = object.clone();
            let claims = self.allocate(def, &mut candidate, None)?;
            let mut errors = Errors::default();
            check_metadata(&candidate, strategy.name_rule(), &mut errors);
            strategy.validate(&candidate, &mut errors);
            errors.finish(def, &name)?;
            if let Some(admission) = self.admission() {
                admission
                    .validate(attributes(context, target, &name, Operation::Create), Some(&candidate), None)
                    .await?;
            }
            for warning in strategy.warnings(&candidate) {
                context.warnings.add(warning);
            }
            match self.store_new(context, Target { name: &name, ..target }, candidate, &claims).await {
                // Somebody took the address at the same moment: choose another one.
                Err(Refused::Claim) if claims.can_choose_again && attempt < CLAIM_ATTEMPTS => attempt += 1,
                Err(Refused::Claim) => return Err(claims.refusal(def, &name)),
                Err(Refused::Status(status)) => return Err(status),
                Ok(stored) => return Ok(stored),
            }
        }
    }

    async fn store_new(
        &self,
        context: &RequestContext,
        target: Target<'_>,
        object: Value,
        claims: &Claims,
    ) -> Result<Arc<Object>, Refused> {
        let stored = convert::value_to_storage(target.def, object);
        if context.dry_run {
            return self.preview(target, &stored).await.map_err(Refused::Status);
        }
        let value = codec::encode_stored(&stored);
        let mut transaction = Transaction {
            conditions: vec![Condition { key: target.key(), mod_revision: 0 }],
            writes: vec![Write::Put { key: target.key(), value: value.clone() }],
        };
        claims.add_to(&mut transaction);
        match self.storage().transact(transaction, context.fence).await {
            Ok(revision) => {
                let object =
                    Object::from_stored(&value, revision).map_err(|error| Refused::Status(Status::internal(error)))?;
                convert::from_storage(target.def, Arc::new(object)).map_err(Refused::Status)
            }
            Err(StorageError::Conflict { found }) if found.first().is_some_and(Option::is_none) => Err(Refused::Claim),
            Err(StorageError::Conflict { .. }) => {
                Err(Refused::Status(Status::already_exists(target.def.group, target.def.resource, target.name)))
            }
            Err(error) => Err(Refused::Status(of_storage(&error))),
        }
    }

    /// What a dry run answers: the object as it would be, without a revision.
    async fn preview(&self, target: Target<'_>, stored: &Value) -> Result<Arc<Object>, Status> {
        let there = self.storage().get(&target.key()).await.map_err(|error| of_storage(&error))?;
        if there.value.is_some() {
            return Err(Status::already_exists(target.def.group, target.def.resource, target.name));
        }
        let object = Object::from_value(stored, 0).map_err(Status::internal)?;
        convert::from_storage(target.def, Arc::new(object))
    }

    /// Nothing is created in a namespace that does not exist or is on its way out.
    async fn check_namespace(&self, target: Target<'_>, name: &str) -> Result<(), Status> {
        let def = crate::schema::resource("", "v1", "namespaces")
            .ok_or_else(|| Status::internal("namespaces are not served"))?;
        let key = Target { def, namespace: "", name: target.namespace, subresource: "" };
        let namespace = match self.cache().of(def)?.get(target.namespace) {
            Some(namespace) => namespace,
            // It may have been created a moment ago, through another server.
            None => self.read(key).await?.ok_or_else(|| Status::not_found("", "namespaces", target.namespace))?,
        };
        if !namespace.meta().is_terminating() {
            return Ok(());
        }
        let why =
            format!("unable to create new content in namespace {} because it is being terminated", target.namespace);
        let mut status = Status::forbidden(target.def.group, target.def.resource, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(StatusCause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {} is being terminated", target.namespace),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(status)
    }
}

/// Why a new object was not stored.
enum Refused {
    /// Something that it claims is taken.
    Claim,
    Status(Status),
}

/// A request for a certificate says who made it; nobody says that but the server.
fn sign_request(context: &RequestContext, object: &mut Value) {
    let spec = child(object, "spec");
    let user = serde_json::to_value(&context.user).unwrap_or_default();
    for field in ["username", "uid", "groups", "extra"] {
        match user.get(field) {
            Some(value) => set(spec, field, value.clone()),
            None => drop(remove(spec, field)),
        }
    }
}

/// Kinds whose clients report a status when they create the object.
fn keeps_status(resource: &str) -> bool {
    matches!(resource, "nodes" | "namespaces")
}

/// Puts in what the server alone decides about new metadata.
fn stamp(object: &mut Value, target: Target<'_>) -> Result<(), Status> {
    if !object["metadata"]["resourceVersion"].as_str().is_none_or(str::is_empty) {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let metadata = child(object, "metadata");
    let namespace = strategy::text(metadata, "namespace");
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if target.def.namespaced {
        set(metadata, "namespace", target.namespace);
    } else {
        remove(metadata, "namespace");
    }
    for field in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        remove(metadata, field);
    }
    let prefix = strategy::text(metadata, "generateName");
    if strategy::text(metadata, "name").is_empty() && !prefix.is_empty() {
        let name = generated_name(prefix);
        set(metadata, "name", name);
    }
    set(metadata, "uid", uuid::Uuid::new_v4().to_string());
    set(metadata, "creationTimestamp", now());
    Ok(())
}

fn generated_name(prefix: &str) -> String {
    let mut end = prefix.len().min(GENERATE_NAME_PREFIX_LIMIT);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut random = rand::rng();
    let suffix = (0..5).map(|_| char::from(NAME_CHARACTERS[random.random_range(0..NAME_CHARACTERS.len())]));
    prefix[..end].chars().chain(suffix).collect()
}

/// The time as metadata carries it: RFC 3339, whole seconds, UTC.
pub(super) fn now() -> String {
    after(0)
}

/// [`now`], so many seconds later.
pub(super) fn after(seconds: i64) -> String {
    let now = jiff::Timestamp::now();
    // Grace periods come from clients: an absurd one ends at the last time there is.
    let then = now.as_second().saturating_add(seconds);
    jiff::Timestamp::from_second(then).unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What admission is told about a write.
pub(super) fn attributes<'a>(
    context: &'a RequestContext,
    target: Target<'a>,
    name: &'a str,
    operation: Operation,
) -> Attributes<'a> {
    Attributes {
        user: &context.user,
        operation,
        group: target.def.group,
        version: target.def.version,
        resource: target.def.resource,
        subresource: target.subresource,
        kind: target.def.kind,
        namespace: target.namespace,
        name,
        dry_run: context.dry_run,
    }
}
