//! Agents that ask whether they may restart a pod, and what they are told.

use platctrl_controllers::ledger::Grant;
use platctrl_framework::client::Batch;
use platctrl_framework::model::{Object, ObjectKey, Resource as _, Tree};
use platctrl_framework::store::{Store as _, Transaction};
use platctrl_kinds::{Amount, DaemonSet, DaemonSetSpec, Pod, RestartRequest};

use crate::world::{World, controller_key, controller_spec, named, until};

const FOUR: [(&str, &str); 4] = [("n1", "web"), ("n2", "web"), ("n3", "web"), ("n4", "web")];

impl World {
    /// What the agent of a pod says: that it asks for a restart, or not any more.
    pub(crate) async fn ask(&self, key: &ObjectKey, request: Option<&str>) {
        loop {
            let joined = self.client.joined(key).await.unwrap();
            let pod: Object<Pod> = joined.object().unwrap().typed().unwrap();
            let mut status = pod.status.clone();
            status.detail.restart_request = request.map(|id| RestartRequest {
                id: id.to_owned(),
                reason: "it does not answer".to_owned(),
            });
            let mut batch = Batch::new();
            batch.report_typed::<Pod>(&joined, &status).unwrap();
            match self.client.commit(batch).await {
                Err(error) if error.is_conflict() => {}
                done => {
                    done.unwrap();
                    return;
                }
            }
        }
    }

    pub(crate) fn grant(&self, key: &ObjectKey) -> Option<Grant> {
        let record = self.store.peek(&key.store_key(Tree::Grant))?;
        serde_json::from_slice(&record.value).ok()
    }

    /// The pods that may restart and have not yet.
    async fn restarting(&self) -> Vec<ObjectKey> {
        let pods = self.pods().await;
        let granted = |pod: &Object<Pod>| {
            let key = pod.key().unwrap();
            let request = pod.status.detail.restart_request.as_ref()?;
            let grant = self.grant(&key)?;
            let same = grant.uid == pod.metadata.uid && grant.request == request.id;
            same.then_some(key)
        };
        pods.iter().filter_map(granted).collect()
    }
}

fn broken(location: &mut String) {
    *location = "artifact:broken".to_owned();
}

/// Four pods that run and do nothing, whose agents all ask.
async fn four_that_ask() -> (World, Vec<ObjectKey>) {
    let world = World::with_nodes(&FOUR).await;
    world
        .create(4, |spec| {
            let web = spec.template.spec.launchables.get_mut("web").unwrap();
            broken(&mut web.location);
        })
        .await;
    world.reported(4).await;
    let keys: Vec<_> = world
        .pods()
        .await
        .iter()
        .map(|pod| pod.key().unwrap())
        .collect();
    for key in &keys {
        world.ask(key, Some("1")).await;
    }
    (world, keys)
}

#[tokio::test(start_paused = true)]
async fn restarts_are_granted_as_many_at_a_time_as_may_be_missing() {
    let (world, keys) = four_that_ask().await;
    let mut done = Vec::new();
    while done.len() < keys.len() {
        until("one may restart", || async {
            !world.restarting().await.is_empty()
        })
        .await;
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        let now = world.restarting().await;
        assert_eq!(
            now.len(),
            1,
            "all but one have to stay, by default: {now:?}"
        );
        let key = now[0].clone();
        let grant = world.grant(&key).unwrap();
        assert_eq!(
            (&*grant.request, &*grant.by),
            ("1", "replicationcontroller/hello")
        );
        assert!(!done.contains(&key));
        world.ask(&key, None).await;
        done.push(key);
    }
    // Another request of the same pod is another one.
    world.ask(&keys[0], Some("2")).await;
    until("it is granted as well", || async {
        world
            .grant(&keys[0])
            .is_some_and(|grant| grant.request == "2")
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn failsafe_ledger_lost_forgets_no_restart_that_was_granted() {
    let (world, _) = four_that_ask().await;
    until("one may restart", || async {
        !world.restarting().await.is_empty()
    })
    .await;
    let before = world.restarting().await;
    let ledger = controller_key().store_key(Tree::Ledger);
    let lost = world.store.peek(&ledger).unwrap().modified;
    world
        .store
        .commit(Transaction::new().delete(ledger.clone()))
        .await
        .unwrap();
    // Somebody asks anew, so that it is needed.
    world
        .change(|spec| spec.progress_deadline = Some(platctrl_kinds::Span::from_secs(60)))
        .await;
    until("it is made again, with what was granted", || async {
        let record = world
            .store
            .peek(&ledger)
            .filter(|record| record.modified > lost);
        record.is_some_and(|record| String::from_utf8_lossy(&record.value).contains("restart"))
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(world.restarting().await, before);
}

#[tokio::test(start_paused = true)]
async fn pods_of_a_daemon_set_are_granted_theirs_from_its_floor() {
    let world = World::with_nodes(&FOUR).await;
    let mut template = controller_spec(1).template;
    let web = template.spec.launchables.get_mut("web").unwrap();
    broken(&mut web.location);
    let json = serde_json::json!({
        "nodeSelector": "role=web", "minimumHealthy": "50%", "template": template,
    });
    let mut spec: DaemonSetSpec = serde_json::from_value(json).unwrap();
    spec.minimum_healthy = Amount::Percent(50);
    world
        .client
        .create(&Object::<DaemonSet>::new(named("logs"), spec))
        .await
        .unwrap();
    world.reported(4).await;
    for pod in world.pods().await {
        world.ask(&pod.key().unwrap(), Some("1")).await;
    }
    until("two may restart", || async {
        world.restarting().await.len() == 2
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(600)).await;
    assert_eq!(world.restarting().await.len(), 2, "half of four");
    let grant = world.grant(&world.restarting().await[0]).unwrap();
    assert_eq!(grant.by, format!("{}/logs", DaemonSet::SINGULAR));
}
