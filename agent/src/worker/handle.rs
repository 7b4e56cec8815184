//! A pod's worker as others hold it: the task that runs it, and the ways to speak to it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Pod;
use super::control::{Control, Controls};
use super::lane::RETRY;
use crate::host::Host;
use crate::name::PodName;
use crate::plan::Order;
use crate::report::Observer;

/// A pod's worker: a task that makes what runs of one pod what its last [`Order`] says.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use platctrl_agent::{Host, HostConfig, Observer, Order, PodName, Worker};
///
/// # async fn example(observer: Arc<dyn Observer>, order: Order, changed: Order) -> Result<(), Box<dyn std::error::Error>> {
/// let host = Arc::new(Host::open(HostConfig::new("/var/lib/platctrl", "web1"))?);
/// let pod = PodName::new("default", "hello")?;
/// let worker = Worker::spawn(host, observer, pod, order);
/// worker.order(changed); // a newer order takes the place of one that is being carried out
/// worker.leave().await; // its programs keep running
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Worker {
    orders: watch::Sender<Order>,
    controls: Arc<Controls>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Starts the worker of a pod. It begins by finding out what of the pod is on this node; a
    /// first order of [`Order::Unknown`] keeps that running.
    #[must_use]
    pub fn spawn(
        host: Arc<Host>,
        observer: Arc<dyn Observer>,
        name: PodName,
        order: Order,
    ) -> Self {
        let (orders, receiver) = watch::channel(order);
        let controls = Arc::new(Controls::default());
        let heard = Arc::clone(&controls);
        // Not in the task that watches over it, which would be as large.
        let begin = move |name: &PodName| {
            let (host, observer) = (Arc::clone(&host), Arc::clone(&observer));
            let pod = Pod::new(host, observer, Arc::clone(&heard), name.clone());
            tokio::spawn(Box::new(pod).run(receiver.clone()))
        };
        let task = tokio::spawn(async move {
            loop {
                match begin(&name).await {
                    Ok(()) => return,
                    // A bug met by one pod costs no other anything, and its programs run on: a new
                    // worker finds them again.
                    Err(error) if error.is_panic() => {
                        tracing::error!(pod = %name, %error, "the pod's worker panicked");
                        tokio::time::sleep(RETRY.1).await;
                    }
                    Err(_) => return,
                }
            }
        });
        Self {
            orders,
            controls,
            task,
        }
    }

    /// Says something that is no order: a grant, or what somebody on the node wants.
    pub fn control(&self, word: Control) {
        self.controls.say(word);
    }

    /// Gives a new order. It replaces one that was not carried out yet.
    pub fn order(&self, order: Order) {
        self.orders.send_if_modified(|known| {
            let changed = *known != order;
            *known = order;
            changed
        });
    }

    /// The pod is gone and the worker has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Waits until the pod is gone and the worker has ended.
    pub async fn finished(&mut self) {
        // A worker that panicked has ended too.
        let _ = (&mut self.task).await;
    }

    /// Ends the worker and waits until it has; the pod's programs keep running.
    pub async fn leave(self) {
        drop(self.orders);
        // A worker that panicked has ended too.
        let _ = self.task.await;
    }
}
