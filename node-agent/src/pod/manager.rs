//! Which pods have a worker: those the API binds to this node, and those the runtime still has.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use quorate_proto::object::Object;
use quorate_runtime::informer::{Informer, Lister};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::spec;
use super::worker::{Shared, Worker};
use crate::cri::labels;

struct Handle {
    wanted: watch::Sender<Option<Arc<Object>>>,
    wake: Arc<Notify>,
}

/// Keeps one worker per pod.
pub struct Manager {
    shared: Arc<Shared>,
    pods: Lister,
    synced: bool,
    workers: BTreeMap<String, Handle>,
    tasks: JoinSet<String>,
    /// What the runtime had of each pod at the last look.
    prints: BTreeMap<String, u64>,
    relist_interval: Duration,
    cancel: CancellationToken,
}

impl Manager {
    pub fn new(shared: Arc<Shared>, pods: &Informer, relist_interval: Duration, cancel: CancellationToken) -> Self {
        Self {
            shared,
            pods: pods.lister(),
            synced: false,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            prints: BTreeMap::new(),
            relist_interval,
            cancel,
        }
    }

    /// Works until cancelled; workers end with it.
    pub async fn run(mut self, source: Informer) {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        source.on_change(move |_| notify.notify_one());
        let cancel = self.cancel.clone();
        tokio::select! {
            () = cancel.cancelled() => return,
            () = source.synced() => self.synced = true,
        }
        self.follow_source();
        let mut relist = tokio::time::interval(self.relist_interval);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                () = changed.notified() => self.follow_source(),
                _ = relist.tick() => self.relist().await,
                Some(ended) = self.tasks.join_next() => self.note_ended(ended),
            }
        }
        while self.tasks.join_next().await.is_some() {}
    }

    fn follow_source(&mut self) {
        let mut wanted = BTreeSet::new();
        for object in self.pods.list() {
            let uid = object.meta().uid.clone();
            if let Err(problem) = check_names(&object) {
                tracing::error!(pod = object.meta().key(), problem, "a pod is refused");
                self.shared.recorder.warning(&object, "FailedValidation", format!("Error validating pod: {problem}"));
                continue;
            }
            wanted.insert(uid.clone());
            let handle = self.worker(uid, Some(&object));
            handle.wanted.send_if_modified(|current| {
                let newer = current.as_ref().is_none_or(|current| current.revision() < object.revision());
                if newer {
                    *current = Some(Arc::clone(&object));
                }
                newer
            });
        }
        for (_, handle) in self.workers.iter().filter(|(uid, _)| !wanted.contains(*uid)) {
            handle.wanted.send_if_modified(|current| current.take().is_some());
        }
    }

    /// `first` is what a new worker sees first: one that sees nothing ends what it finds.
    fn worker(&mut self, uid: String, first: Option<&Arc<Object>>) -> &Handle {
        let (shared, tasks, cancel) = (&self.shared, &mut self.tasks, &self.cancel);
        self.workers.entry(uid).or_insert_with_key(|uid| {
            let (wanted, receiver) = watch::channel(first.cloned());
            let wake = Arc::new(Notify::new());
            let worker = Worker::new(Arc::clone(shared), uid.clone(), receiver, Arc::clone(&wake));
            tasks.spawn(worker.run(cancel.clone()));
            Handle { wanted, wake }
        })
    }

    /// Wakes the workers whose containers have changed by themselves, and gives
    /// pods that nobody wants a worker that ends them.
    async fn relist(&mut self) {
        let (sandboxes, containers) =
            match tokio::try_join!(self.shared.cri.sandboxes(None), self.shared.cri.containers(None)) {
                Ok(both) => both,
                Err(status) => {
                    tracing::warn!(error = crate::cri::describe(&status), "the runtime does not list its pods");
                    return;
                }
            };
        let mut hashers: BTreeMap<String, DefaultHasher> = BTreeMap::new();
        let mut add = |labels: &std::collections::HashMap<String, String>, id: &str, state: i32| {
            if let Some(uid) = labels.get(labels::POD_UID).filter(|uid| is_plain(uid)) {
                (id, state).hash(hashers.entry(uid.clone()).or_default());
            }
        };
        sandboxes.iter().for_each(|sandbox| add(&sandbox.labels, &sandbox.id, sandbox.state));
        containers.iter().for_each(|container| add(&container.labels, &container.id, container.state));
        let prints: BTreeMap<String, u64> = hashers.into_iter().map(|(uid, hasher)| (uid, hasher.finish())).collect();
        let changed: Vec<&String> = prints
            .iter()
            .filter(|(uid, print)| self.prints.get(*uid) != Some(print))
            .map(|(uid, _)| uid)
            .chain(self.prints.keys().filter(|uid| !prints.contains_key(*uid)))
            .collect();
        for uid in changed {
            if let Some(handle) = self.workers.get(uid) {
                handle.wake.notify_one();
            }
        }
        let orphans: Vec<String> = prints.keys().filter(|uid| !self.workers.contains_key(*uid)).cloned().collect();
        self.prints = prints;
        if self.synced {
            for uid in orphans {
                tracing::info!(uid, "ending a pod that is not wanted any more");
                self.worker(uid, None);
            }
        }
        metrics::gauge!("kubelet_running_pods").set(self.prints.len() as f64);
    }

    fn note_ended(&mut self, ended: Result<String, tokio::task::JoinError>) {
        match ended {
            Ok(uid) => {
                self.workers.remove(&uid);
                // It may have come back under the same identity meanwhile.
                self.follow_source();
            }
            Err(error) => {
                // A panic ends one worker; without its name, all that are gone are found by their channel.
                tracing::error!(%error, "a pod worker ended");
                self.workers.retain(|_, handle| !handle.wanted.is_closed());
                self.follow_source();
            }
        }
    }
}

/// Whether a text may become the name of a file.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Names of a pod become paths on this node: none may lead elsewhere, whoever wrote it.
fn check_names(object: &Object) -> Result<(), String> {
    let pod = object.typed::<core::Pod>().map_err(|error| error.to_string())?;
    let meta = object.meta();
    let own = [&meta.uid, &meta.name, &meta.namespace];
    let containers = spec::all(&pod).map(|(container, _)| &container.name);
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).map(|volume| &volume.name);
    match own.into_iter().chain(containers).chain(volumes).find(|name| !is_plain(name)) {
        Some(name) => Err(format!("the name {name:?} cannot be used on a node")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_paths_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a\0b", ".hidden"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("web-1") && is_plain("8f2d.a_b"));
    }
}
