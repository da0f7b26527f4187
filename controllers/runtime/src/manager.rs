//! Runs a set of controllers: caches always, loops while this master leads.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::activation::{Leadership, Reign, while_leading};
use crate::client::Client;
use crate::controller::Controller;
use crate::events::EventRecorder;
use crate::informer::Informers;

/// The controllers of one master and what they share.
pub struct Manager {
    client: Arc<dyn Client>,
    informers: Informers,
    events: EventRecorder,
    tasks: TaskTracker,
    cancel: CancellationToken,
    controllers: Vec<Arc<Controller>>,
}

impl Manager {
    /// Informers start as controllers ask for them, and run until `cancel` is cancelled.
    pub fn new(client: Arc<dyn Client>, component: &str, cancel: CancellationToken) -> Self {
        // Ours to cancel when leadership is told no more; the caller's stays his.
        let cancel = cancel.child_token();
        let tasks = TaskTracker::new();
        let informers = Informers::new(Arc::clone(&client), tasks.clone(), cancel.clone());
        let events = EventRecorder::start(Arc::clone(&client), component, "", &tasks, cancel.clone());
        Self { client, informers, events, tasks, cancel, controllers: Vec::new() }
    }

    pub fn informers(&self) -> &Informers {
        &self.informers
    }

    pub fn events(&self) -> &EventRecorder {
        &self.events
    }

    /// Where controllers put tasks of their own.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub fn add(&mut self, controller: Controller) {
        self.controllers.push(Arc::new(controller));
    }

    /// Runs everything until the manager's `cancel`, then ends all tasks.
    pub async fn run(self, leadership: Leadership) {
        let reigning = TaskTracker::new();
        while_leading(leadership, self.cancel.clone(), |fence| {
            let reigning = reigning.clone();
            let manager = &self;
            async move {
                // Dropped with this future, which ends the workers at their next await.
                let reign_over = CancellationToken::new();
                let _guard = reign_over.clone().drop_guard();
                // Before that they must have ended: no two reigns share a queue.
                reigning.close();
                reigning.wait().await;
                reigning.reopen();
                manager.informers.refresh();
                for controller in &manager.controllers {
                    let reign =
                        Reign::new(fence, Arc::clone(&manager.client), &manager.events.component(controller.name()));
                    let (controller, reign_over) = (Arc::clone(controller), reign_over.clone());
                    reigning.spawn(async move { controller.act(reign, reign_over).await });
                }
                std::future::pending::<()>().await;
            }
        })
        .await;
        reigning.close();
        reigning.wait().await;
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
