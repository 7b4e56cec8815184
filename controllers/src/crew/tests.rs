use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::replication_controller::{self as rc, Sums};

fn key(node: u8, name: u8) -> Arc<ObjectKey> {
    let (group, plural) = (Pod::GROUP, Pod::PLURAL);
    let (node, name) = (format!("n{node}"), format!("p{name}"));
    Arc::new(ObjectKey::on_node(group, plural, &node, "default", &name).unwrap())
}

/// What a pod is like, drawn.
#[derive(Clone, Debug)]
struct Like {
    uid: u8,
    template: u8,
    ready: bool,
    leaving: bool,
    gone: bool,
    singleton: bool,
    asks: bool,
}

fn like() -> impl Strategy<Value = Like> {
    let bools = proptest::array::uniform5(any::<bool>());
    (any::<u8>(), 0u8..3, bools).prop_map(|(uid, template, bools)| {
        let [ready, leaving, gone, singleton, asks] = bools;
        Like {
            uid,
            template,
            ready,
            leaving,
            gone,
            singleton,
            asks,
        }
    })
}

fn pod(key: &ObjectKey, like: &Like) -> Object<Pod> {
    let spec = json!({
        "nodeName": key.node(), "app": "web", "singleton": like.singleton,
        "launchables": { "web": { "location": format!("artifact:{}", like.template) } },
    });
    let mut metadata = platctrl_framework::model::Metadata::named(key.name());
    metadata.namespace = key.namespace().map(ToOwned::to_owned);
    metadata.uid = format!("u{}-{}", like.uid, key.path()).into();
    if like.leaving {
        let deletion = json!({"uid": metadata.uid, "at": "2026-01-01T00:00:00Z", "by": "ann", "propagation": "Orphan",
            "reason": if like.uid.is_multiple_of(2) { "with its owner" } else { "another" }});
        metadata.deletion = Some(serde_json::from_value(deletion).unwrap());
    }
    let mut pod = Object::new(metadata, serde_json::from_value(spec).unwrap());
    let status = json!({
        "phase": if like.gone { "Gone" } else { "Running" },
        "conditions": [{ "type": "Ready", "status": if like.ready { "True" } else { "False" }, "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1 }],
        "restartRequest": like.asks.then(|| json!({ "id": "1", "at": "2026-01-01T00:00:00Z", "reason": "" })),
    });
    pod.status = serde_json::from_value(status).unwrap();
    pod
}

/// All that the sums say, counted one by one.
fn assert_counted(crew: &Crew) {
    let number = |fits: &dyn Fn(&Brief) -> bool| crew.pods().filter(|pod| fits(pod)).count();
    assert_eq!(crew.live(), number(&|pod| !pod.leaving));
    assert_eq!(
        crew.ready() as usize,
        number(&|pod| !pod.leaving && pod.ready)
    );
    assert_eq!(
        crew.singletons() as usize,
        number(&|pod| pod.shape.spec.singleton)
    );
    assert_eq!(crew.asking().count(), number(&|pod| pod.request.is_some()));
    assert_eq!(
        crew.ending().count(),
        number(&|pod| pod.leaving && !pod.gone)
    );
    let all: u32 = crew.alike().map(|alike| alike.all).sum();
    assert_eq!(all as usize, crew.len());
    for alike in crew.alike() {
        let of = |pod: &Brief| Arc::ptr_eq(&pod.shape, &alike.shape);
        assert_eq!(alike.all as usize, number(&of));
        assert_eq!(alike.live as usize, number(&|pod| of(pod) && !pod.leaving));
        let ready = number(&|pod| of(pod) && !pod.leaving && pod.ready);
        assert_eq!(alike.ready as usize, ready);
    }
    let mut order: Vec<_> = crew.pods().filter(|pod| !pod.leaving).collect();
    order.sort_by_key(|pod| (pod.ready, pod.name().to_owned(), pod.key.path().to_owned()));
    let order: Vec<_> = order.iter().map(|pod| pod.key.path()).collect();
    let kept: Vec<_> = crew.in_order().map(|pod| pod.key.path()).collect();
    assert_eq!(kept, order);
    for pod in crew.pods() {
        assert_eq!(
            crew.get(&pod.uid).map(|it| it.key.path()),
            Some(pod.key.path())
        );
        let on_node = crew.on_node(pod.node()).count();
        assert_eq!(on_node, number(&|it| it.node() == pod.node()));
    }
}

proptest! {
    #[test]
    fn what_is_kept_from_change_to_change_is_what_counting_says(
        steps in proptest::collection::vec((0u8..12, 0u8..3, proptest::option::of(like())), 0..60),
        homes in proptest::collection::vec(proptest::collection::hash_set(0u8..12, 0..12), 1..4),
        asked in 1usize..9,
    ) {
        let mut kept = Kept::default();
        let homes: Vec<Names> = homes
            .iter()
            .map(|nodes| Arc::new(nodes.iter().map(|node| format!("n{node}")).collect()))
            .collect();
        for (at, (node, name, like)) in steps.iter().enumerate() {
            let key = key(*node, *name);
            kept.put(&key, like.as_ref().map(|like| pod(&key, like)).as_ref());
            assert_counted(kept.crew());
            // Not asked each time, and not always about the same nodes.
            if at % asked == 0 {
                let homes = &homes[at / 16 % homes.len()];
                let strays = kept.crew().pods().filter(|pod| !pod.leaving && !homes.contains(pod.node())).count();
                prop_assert_eq!(kept.astray(homes), strays);
            }
        }
    }

    #[test]
    fn what_sums_say_that_is_to_be_done_a_look_at_each_pod_says_too(
        pods in proptest::collection::vec((0u8..4, 0u8..9, like()), 0..7),
        replicas in 0u32..7, dynamic: bool, disabled: bool, claimed: bool,
    ) {
        use crate::placement::{Fleet, FleetNode, NodeState, Placement, Request, Spread};

        let mut kept = Kept::default();
        for (node, name, like) in &pods {
            let key = key(*node, *name);
            // Mostly as they should be.
            let like = Like { template: like.template / 2, leaving: like.leaving && like.asks, ..like.clone() };
            kept.put(&key, Some(&pod(&key, &like)));
        }
        // There is no third node, and pods do not stay on the fourth.
        let mut lost = FleetNode::named("n3");
        lost.state = NodeState::Lost;
        let fleet = Fleet::new([FleetNode::named("n0"), FleetNode::named("n1"), lost]);
        let homes: Names = Arc::new(["n0", "n1"].map(ToOwned::to_owned).into());
        let wanted = |shape: &Shape| shape.spec.launchables["web"].location == "artifact:0";
        let astray = u32::try_from(kept.astray(&homes)).unwrap();
        let crew = kept.crew();
        let current = crew.alike().filter(|alike| wanted(&alike.shape));
        let (live, ready) = current.fold((0, 0), |sum, it| (sum.0 + it.live, sum.1 + it.ready));
        let taken_back = |pod: &Brief| pod.end_reason.as_deref() == Some("with its owner");
        let sums = Sums {
            live: u32::try_from(crew.live()).unwrap(),
            current: live,
            ready,
            astray,
            ending: crew.ending().any(|pod| pod.shape.spec.singleton || taken_back(pod)),
        };
        let facts = crew.pods().map(|pod| rc::PodFacts {
            name: pod.name().to_owned(),
            node: pod.node().to_owned(),
            ready: pod.ready,
            leaving: pod.leaving,
            singleton: pod.shape.spec.singleton,
            taken_back: taken_back(pod),
            gone: pod.gone,
            current: wanted(&pod.shape),
            same_spec: wanted(&pod.shape),
            created: pod.created,
            grows: false,
            stuck: None,
        });
        let observed = rc::Observed {
            request: Request::new("default/web", "*".parse().unwrap()),
            fleet: Arc::new(fleet),
            replicas,
            strategy: if dynamic { platctrl_kinds::Strategy::Dynamic } else { platctrl_kinds::Strategy::Static },
            claimed,
            disabled,
            pods: facts.collect(),
            orphans: Vec::new(),
            budget: rc::Budget::default(),
        };
        if let Some(rests) = rc::at_rest(&sums, replicas) {
            prop_assert_eq!(rests, rc::plan(&observed, &Spread));
        }
        let place = |count| Spread.place(&observed.fleet, &observed.request, count);
        if let Some(grown) = rc::grow(&sums, replicas, place).filter(|_| !disabled) {
            prop_assert_eq!(grown, rc::plan(&observed, &Spread));
        }
    }
}

/// A new pod as it is found in the store, with its owner.
fn new_pod(name: u8) -> (Arc<ObjectKey>, Object<Pod>, Arc<Shape>) {
    let owner: Object<platctrl_kinds::ReplicationController> = Object::new(
        platctrl_framework::model::Metadata {
            namespace: Some("default".into()),
            uid: "owner".into(),
            ..platctrl_framework::model::Metadata::named("web")
        },
        serde_json::from_value(json!({
            "replicas": 1, "nodeSelector": "*",
            "template": {
                "metadata": { "labels": { "a": "b" }, "annotations": { "c": "d" } },
                "spec": {
                    "launchables": { "web": { "location": "artifact:one", "env": { "A": "ü\n" },
                        "resources": { "cpu": "500m", "memory": "256Mi" } } },
                    "ports": { "http": { "port": 8080 } },
                    "config": { "greeting": [1, 2.5, null, { "x": true }] },
                    "terminationGracePeriod": "30s",
                },
            },
        }))
        .unwrap(),
    );
    let workload = crate::template::Workload::of(&owner, &owner.spec.template);
    let key = key(1, name);
    let metadata = platctrl_framework::model::Metadata {
        namespace: Some("default".into()),
        uid: format!("u{name}").into(),
        generation: 1,
        creation_timestamp: Some("2026-01-01T00:00:00.123456789Z".parse().unwrap()),
        labels: owner.spec.template.metadata.labels.clone(),
        annotations: owner.spec.template.metadata.annotations.clone(),
        owner_references: vec![owner.owner_reference()],
        ..platctrl_framework::model::Metadata::named(key.name())
    };
    let pod: Object<Pod> = Object::new(metadata, workload.spec("n1"));
    let stored = serde_json::to_vec(&pod.to_raw().unwrap()).unwrap();
    let read: platctrl_framework::model::RawObject = serde_json::from_slice(&stored).unwrap();
    (key, read.typed().unwrap(), Arc::new(workload.shape()))
}

fn made(key: &Arc<ObjectKey>, pod: &Object<Pod>) -> Made {
    Made {
        key: key.clone(),
        uid: pod.metadata.uid.clone(),
        created: created(pod),
    }
}

fn at(revision: u64) -> Revision {
    Revision::new(0, revision)
}

#[test]
fn what_is_known_of_a_new_pod_is_what_reading_it_says() {
    let (key, pod, shape) = new_pod(1);
    let mut read = Kept::default();
    read.put(&key, Some(&pod));
    let mut told = Kept::default();
    told.expect(vec![made(&key, &pod)], &shape, at(7), at(3));
    assert!(!told.is_empty());
    assert!(told.put_known(&key, at(7)));
    let all = |kept: &Kept| {
        let crew = kept.crew();
        let alike: Vec<_> = crew.alike().cloned().collect();
        format!("{:?} {alike:?}", crew.pods().collect::<Vec<_>>())
    };
    assert_eq!(all(&told), all(&read));
    assert_counted(told.crew());
    // Pods of one shape are alike, whether they were read or not.
    let (other, pod, _) = new_pod(2);
    told.put(&other, Some(&pod));
    assert_eq!(told.crew().alike().count(), 1);
    assert_counted(told.crew());
    // Each is taken in once.
    assert!(!told.put_known(&key, at(7)));
}

#[test]
fn a_pod_that_is_not_as_it_was_made_is_read() {
    let pods: Vec<_> = (1..5).map(new_pod).collect();
    let shape = &pods[0].2;
    let mut kept = Kept::default();
    let all = pods.iter().map(|(key, pod, _)| made(key, pod)).collect();
    kept.expect(all, shape, at(7), at(3));
    assert!(!kept.put_known(&pods[0].0, at(8)), "changed since");
    assert!(!kept.put_known(&pods[0].0, at(7)), "that was newer");
    kept.put(&pods[1].0, None);
    assert!(!kept.put_known(&pods[1].0, at(7)), "gone meanwhile");
    kept.expect(Vec::new(), shape, at(9), at(6));
    assert!(kept.put_known(&pods[2].0, at(7)), "no view had to show it");
    kept.expect(Vec::new(), shape, at(10), at(7));
    assert!(!kept.put_known(&pods[3].0, at(7)), "a view had to show it");
}
