//! A foreign client library: `kube` reads, writes, mirrors and reconciles our kinds. It knows
//! nothing of us but the address; no Kubernetes anywhere.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{
    Api as KubeApi, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixStream};

use super::{Api, controller};

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// The address of a port by which the server's socket is reached.
pub(super) async fn port(api: &Api) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let socket = api.dir.path().join(platctrl::server::SOCKET);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut to = UnixStream::connect(socket).await?;
                tokio::io::copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    url
}

/// A client that reaches the server's socket by way of a port.
async fn client(api: &Api) -> Client {
    let url = port(api).await;
    Client::try_from(Config::new(url.parse().unwrap())).unwrap()
}

fn resource() -> ApiResource {
    let kind = GroupVersionKind::gvk("platctrl.dev", "v1", "ReplicationController");
    ApiResource::from_gvk(&kind)
}

fn controllers(client: &Client) -> KubeApi<DynamicObject> {
    KubeApi::namespaced_with(client.clone(), "default", &resource())
}

fn object(name: &str) -> DynamicObject {
    serde_json::from_value(controller(name)).unwrap()
}

async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work)
        .await
        .unwrap_or_else(|_| panic!("{what}: it did not happen"))
}

fn code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_kube_crate_reads_and_writes_our_kinds() {
    let api = Api::start().await;
    let client = client(&api).await;
    let group = kube::discovery::group(&client, "platctrl.dev")
        .await
        .unwrap();
    let (pods, _) = group.recommended_kind("Pod").unwrap();
    assert_eq!(pods.plural, "pods");

    let all = controllers(&client);
    let create = PostParams::default();
    let made = all.create(&create, &object("a")).await.unwrap();
    let taken = all.create(&create, &object("a")).await.unwrap_err();
    assert_eq!(code(&taken), 409);

    // Its own words for the ways to change something.
    let merge = Patch::Merge(json!({"spec": {"replicas": 5}}));
    all.patch("a", &PatchParams::default(), &merge)
        .await
        .unwrap();
    let stale = all.replace("a", &create, &made).await.unwrap_err();
    assert_eq!(code(&stale), 409);
    let scale = all.get_scale("a").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(5));
    let applied = Patch::Apply(
        json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
        "spec": {"replicas": 6}}),
    );
    let conflict = all
        .patch("a", &PatchParams::apply("ci"), &applied)
        .await
        .unwrap_err();
    assert_eq!(code(&conflict), 409);
    let forced = all
        .patch("a", &PatchParams::apply("ci").force(), &applied)
        .await
        .unwrap();
    assert_eq!(forced.data["spec"]["replicas"], 6);
    assert!(
        forced
            .managed_fields()
            .iter()
            .any(|it| it.manager.as_deref() == Some("ci"))
    );
    let dry = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let tried = all.patch("a", &dry, &merge).await.unwrap();
    assert_eq!(tried.data["spec"]["replicas"], 5);
    assert_eq!(all.get("a").await.unwrap().data["spec"]["replicas"], 6);

    // A list in pages, at one revision.
    for name in ["b", "c", "d", "e"] {
        all.create(&create, &object(name)).await.unwrap();
    }
    let mut params = ListParams::default().limit(2);
    let mut names = Vec::new();
    let mut versions = Vec::new();
    loop {
        let page = all.list(&params).await.unwrap();
        assert!(page.items.len() <= 2);
        names.extend(page.items.iter().map(kube::ResourceExt::name_any));
        versions.push(page.metadata.resource_version.clone());
        let next = page.metadata.continue_.filter(|it| !it.is_empty());
        let Some(next) = next else { break };
        params = params.continue_token(&next);
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);
    versions.dedup();
    assert_eq!(versions.len(), 1);
    let chosen = ListParams::default().labels("app in (b,c)");
    assert_eq!(all.list(&chosen).await.unwrap().items.len(), 2);

    all.delete("a", &DeleteParams::default()).await.unwrap();
    let gone = all.get("a").await.unwrap_err();
    assert_eq!(code(&gone), 404);
}

#[tokio::test]
async fn a_reflector_of_the_kube_crate_mirrors_our_kinds() {
    let api = Api::start().await;
    let client = client(&api).await;
    let all = controllers(&client);
    for name in ["a", "b"] {
        all.create(&PostParams::default(), &object(name))
            .await
            .unwrap();
    }
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let writer = reflector::store::Writer::new(resource());
        let store = writer.as_reader();
        let stream = reflector(writer, watcher(all.clone(), config)).default_backoff();
        let mirror = tokio::spawn(stream.touched_objects().try_for_each(|_| async { Ok(()) }));
        soon("a first list", store.wait_until_ready())
            .await
            .unwrap();
        let names = || {
            let mut names: Vec<_> = store.state().iter().map(|it| it.name_any()).collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["a", "b"]);
        all.create(&PostParams::default(), &object("late"))
            .await
            .unwrap();
        let until = |wanted: &'static [&'static str]| {
            let names = &names;
            async move {
                while names() != wanted {
                    tokio::task::yield_now().await;
                }
            }
        };
        soon("what is new", until(&["a", "b", "late"])).await;
        all.delete("late", &DeleteParams::default()).await.unwrap();
        soon("what is gone", until(&["a", "b"])).await;
        mirror.abort();
    }
}

#[tokio::test]
async fn a_controller_of_the_kube_crate_reconciles_our_kinds() {
    let api = Api::start().await;
    let client = client(&api).await;
    let all = controllers(&client);
    for name in ["a", "b", "c"] {
        all.create(&PostParams::default(), &object(name))
            .await
            .unwrap();
    }
    let reconcile = |object: Arc<DynamicObject>, all: Arc<KubeApi<DynamicObject>>| async move {
        let status = json!({"apiVersion": "platctrl.dev/v1", "kind": "ReplicationController",
            "status": {"readyReplicas": object.data["spec"]["replicas"]}});
        let params = PatchParams::apply("test-controller").force();
        all.patch_status(&object.name_any(), &params, &Patch::Apply(status))
            .await?;
        Ok::<_, kube::Error>(Action::await_change())
    };
    let policy = |_: Arc<DynamicObject>, _: &kube::Error, _: Arc<KubeApi<DynamicObject>>| {
        Action::requeue(Duration::from_millis(100))
    };
    let run = Controller::new_with(all.clone(), watcher::Config::default(), resource())
        .run(reconcile, policy, Arc::new(all.clone()))
        .for_each(|_| async {});
    let running = tokio::spawn(run);
    let ready = |wanted: Value| {
        let all = &all;
        async move {
            loop {
                let list = all.list(&ListParams::default()).await.unwrap();
                if list
                    .items
                    .iter()
                    .all(|it| it.data["status"]["readyReplicas"] == wanted)
                {
                    return list.items.len();
                }
            }
        }
    };
    assert_eq!(soon("a status", ready(json!(2))).await, 3);
    let scale = Patch::Merge(json!({"spec": {"replicas": 4}}));
    for name in ["a", "b", "c"] {
        all.patch_scale(name, &PatchParams::default(), &scale)
            .await
            .unwrap();
    }
    assert_eq!(soon("another status", ready(json!(4))).await, 3);
    running.abort();
}
