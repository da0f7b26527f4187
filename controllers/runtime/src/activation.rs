//! Role is a function of Raft state: loops run while this master leads, and not a moment longer.

use std::future::Future;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use quorate_proto::fence::Fence;
use quorate_proto::gvk::GroupVersionResource;
use quorate_proto::object::Object;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, DeleteOptions, ListOptions, ObjectList, Patch, Result, WatchEvent, WriteOptions};
use crate::events::EventRecorder;

/// `Some` from the moment the new term's first entry is applied on the leader, `None`
/// from the moment leadership ends.
pub type Leadership = watch::Receiver<Option<Fence>>;

/// One reign of this master, and the means to act during it.
#[derive(Clone)]
pub struct Reign {
    pub fence: Fence,
    /// Every write through it carries `fence`.
    pub client: Arc<dyn Client>,
    /// Every event through it carries `fence`.
    pub events: EventRecorder,
}

impl Reign {
    pub fn new(fence: Fence, client: Arc<dyn Client>, events: &EventRecorder) -> Self {
        Self { fence, client: Arc::new(Fenced::new(client, fence)), events: events.fenced(fence) }
    }
}

/// Calls `act` with the fence of each reign and drops its future the moment that reign ends.
///
/// `act`'s future may be dropped at any await, so it must be fit for that: a reconcile
/// reads everything anew, and a write already on its way is refused by its fence. If it
/// ends early, the next reign is awaited. Returns when `cancel` is cancelled, or when the
/// store that sends `leadership` is gone.
pub async fn while_leading<F, Fut>(mut leadership: Leadership, cancel: CancellationToken, mut act: F)
where
    F: FnMut(Fence) -> Fut,
    Fut: Future<Output = ()>,
{
    loop {
        let reign = *leadership.borrow_and_update();
        let acting = async {
            if let Some(fence) = reign {
                act(fence).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            ended = reign_ended(&mut leadership, reign) => {
                if !ended {
                    return;
                }
            }
            () = acting => {}
        }
    }
}

/// Waits until leadership is another than `reign`; false when it can never change again.
async fn reign_ended(leadership: &mut Leadership, reign: Option<Fence>) -> bool {
    leadership.wait_for(|now| *now != reign).await.is_ok()
}

/// Under which name controllers write that give none: dashboards know it.
const MANAGER: &str = "kube-controller-manager";

/// A client whose writes take effect only while one reign lasts.
pub struct Fenced {
    client: Arc<dyn Client>,
    fence: Fence,
}

impl Fenced {
    pub fn new(client: Arc<dyn Client>, fence: Fence) -> Self {
        Self { client, fence }
    }

    fn fenced(&self, mut options: WriteOptions) -> WriteOptions {
        options.fence = Some(self.fence);
        if options.field_manager.is_empty() {
            MANAGER.clone_into(&mut options.field_manager);
        }
        options
    }
}

impl Client for Fenced {
    fn get<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        self.client.get(resource, namespace, name)
    }

    fn list<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
    ) -> BoxFuture<'a, Result<ObjectList>> {
        self.client.list(resource, namespace, options)
    }

    fn watch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        options: ListOptions,
        revision: u64,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<WatchEvent>>>> {
        self.client.watch(resource, namespace, options, revision)
    }

    fn create<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        subresource: Option<(&'a str, &'a str)>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        self.client.create(resource, namespace, subresource, object, self.fenced(options))
    }

    fn update<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        object: Value,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        self.client.update(resource, namespace, name, subresource, object, self.fenced(options))
    }

    fn patch<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        subresource: Option<&'a str>,
        patch: Patch,
        options: WriteOptions,
    ) -> BoxFuture<'a, Result<Arc<Object>>> {
        self.client.patch(resource, namespace, name, subresource, patch, self.fenced(options))
    }

    fn delete<'a>(
        &'a self,
        resource: &'a GroupVersionResource,
        namespace: Option<&'a str>,
        name: &'a str,
        mut options: DeleteOptions,
    ) -> BoxFuture<'a, Result<()>> {
        options.write = self.fenced(options.write);
        self.client.delete(resource, namespace, name, options)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;

    fn fence(term: u64) -> Fence {
        Fence { generation: 1, term }
    }

    #[tokio::test(start_paused = true)]
    async fn loops_live_exactly_as_long_as_their_reign() {
        struct Ended<'a>(&'a Mutex<Vec<String>>, u64);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(format!("end {}", self.1));
            }
        }
        let log = Mutex::new(Vec::new());
        let (sender, receiver) = watch::channel(None);
        let cancel = CancellationToken::new();
        let acting = while_leading(receiver, cancel.clone(), |fence| {
            let log = &log;
            async move {
                log.lock().unwrap().push(format!("begin {}", fence.term));
                let _ended = Ended(log, fence.term);
                std::future::pending::<()>().await;
            }
        });
        let reigns = async {
            for leadership in [Some(fence(3)), Some(fence(3)), None, Some(fence(5)), Some(fence(6))] {
                sender.send(leadership).unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            cancel.cancel();
        };
        tokio::join!(acting, reigns);
        let expected = ["begin 3", "end 3", "begin 5", "end 5", "begin 6", "end 6"];
        assert_eq!(*log.lock().unwrap(), expected);
    }
}
