//! Events: what controllers and agents tell the people who look at an object.
//!
//! Recording never blocks and never fails a reconcile: events go through a bounded
//! channel to one task, which joins repetitions and drops floods.

mod correlator;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use quorate_proto::fence::Fence;
use quorate_proto::object::Object;
use quorate_proto::status::Status;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Client, Patch, WriteOptions};
use crate::resources;
use correlator::{Action, Correlator};

/// As upstream's broadcaster.
const QUEUE_LENGTH: usize = 1000;
const ATTEMPTS: usize = 3;
const RETRY_DELAY: Duration = Duration::from_millis(300);

/// What an event is about: core/v1 ObjectReference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// Such as `spec.containers{web}`; empty for the whole object.
    pub field_path: String,
}

impl Reference {
    pub fn of(object: &Object) -> Self {
        let (gvk, meta) = (object.gvk(), object.meta());
        Self {
            api_version: gvk.api_version(),
            kind: gvk.kind.clone(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: object.revision().to_string(),
            field_path: String::new(),
        }
    }

    pub fn with_field_path(mut self, path: impl Into<String>) -> Self {
        self.field_path = path.into();
        self
    }

    /// Events about cluster-scoped objects live in `default`.
    fn event_namespace(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing that happened, as its recorder saw it.
#[derive(Clone, Debug)]
struct Note {
    about: Reference,
    event_type: EventType,
    reason: String,
    message: String,
    component: Arc<str>,
    host: Arc<str>,
    fence: Option<Fence>,
    at: Timestamp,
}

/// Records events in the name of one component. Cheap to clone.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Note>,
    component: Arc<str>,
    host: Arc<str>,
    fence: Option<Fence>,
}

impl EventRecorder {
    /// Starts the task that writes what this recorder, and all made of it, record.
    /// `host` is the node that an agent runs on; empty elsewhere.
    pub fn start(
        client: Arc<dyn Client>,
        component: &str,
        host: &str,
        tasks: &TaskTracker,
        cancel: CancellationToken,
    ) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE_LENGTH);
        tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = write_notes(client, notes) => {}
            }
        });
        Self { queue, component: component.into(), host: host.into(), fence: None }
    }

    /// The same recorder in the name of another component.
    pub fn component(&self, component: &str) -> Self {
        Self { component: component.into(), ..self.clone() }
    }

    /// The same recorder, whose events are written only while that reign lasts.
    pub fn fenced(&self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self.clone() }
    }

    pub fn normal(&self, object: &Object, reason: &str, message: impl Into<String>) {
        self.record(Reference::of(object), EventType::Normal, reason, message);
    }

    pub fn warning(&self, object: &Object, reason: &str, message: impl Into<String>) {
        self.record(Reference::of(object), EventType::Warning, reason, message);
    }

    /// Records an event; drops it when a thousand wait already.
    pub fn record(&self, about: Reference, event_type: EventType, reason: &str, message: impl Into<String>) {
        let note = Note {
            about,
            event_type,
            reason: reason.to_owned(),
            message: message.into(),
            component: Arc::clone(&self.component),
            host: Arc::clone(&self.host),
            fence: self.fence,
            at: Timestamp::now(),
        };
        if self.queue.try_send(note).is_err() {
            metrics::counter!("events_discarded_total").increment(1);
        }
    }
}

async fn write_notes(client: Arc<dyn Client>, mut notes: mpsc::Receiver<Note>) {
    let mut correlator = Correlator::default();
    while let Some(note) = notes.recv().await {
        let action = correlator.observe(&note);
        let mut attempt = 1;
        while let Err(error) = write(client.as_ref(), &note, &action).await {
            if attempt == ATTEMPTS || !is_passing(&error) {
                tracing::debug!(%error, reason = note.reason, object = note.about.name, "an event is lost");
                metrics::counter!("events_discarded_total").increment(1);
                break;
            }
            attempt += 1;
            tokio::time::sleep(RETRY_DELAY).await;
        }
    }
}

/// Whether the server may accept later what it refused now.
fn is_passing(error: &Status) -> bool {
    error.code >= 500 || error.code == 429
}

async fn write(client: &dyn Client, note: &Note, action: &Action) -> Result<(), Status> {
    let events = resources::events();
    let namespace = Some(note.about.event_namespace());
    let options = || WriteOptions { field_manager: note.component.to_string(), fence: note.fence };
    match action {
        Action::Drop => return Ok(()),
        Action::Create { .. } => {}
        Action::Repeat { name, message, count, first } => {
            let patch = json!({"count": count, "lastTimestamp": time(note.at), "message": message});
            match client.patch(&events, namespace, name, None, Patch::Merge(patch), options()).await {
                // Events expire: then the repetition is told by a new one.
                Err(error) if error.is_not_found() => {
                    let event = event(note, name, message, *count, *first);
                    return client.create(&events, namespace, None, event, options()).await.map(drop);
                }
                other => return other.map(drop),
            }
        }
    }
    if let Action::Create { name, message } = action {
        let event = event(note, name, message, 1, note.at);
        client.create(&events, namespace, None, event, options()).await?;
    }
    Ok(())
}

fn event(note: &Note, name: &str, message: &str, count: u32, first: Timestamp) -> Value {
    let about = &note.about;
    let mut involved = json!({
        "kind": about.kind, "apiVersion": about.api_version, "name": about.name,
        "uid": about.uid, "resourceVersion": about.resource_version,
    });
    if !about.namespace.is_empty() {
        involved["namespace"] = json!(about.namespace);
    }
    if !about.field_path.is_empty() {
        involved["fieldPath"] = json!(about.field_path);
    }
    let mut source = json!({"component": &*note.component});
    if !note.host.is_empty() {
        source["host"] = json!(&*note.host);
    }
    json!({
        "kind": "Event",
        "apiVersion": "v1",
        "metadata": {"name": name, "namespace": about.event_namespace()},
        "involvedObject": involved,
        "reason": note.reason,
        "message": message,
        "source": source,
        "firstTimestamp": time(first),
        "lastTimestamp": time(note.at),
        "count": count,
        "type": note.event_type.as_str(),
        "eventTime": null,
        "reportingComponent": &*note.component,
        "reportingInstance": &*note.host,
    })
}

/// meta/v1 Time: whole seconds.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
