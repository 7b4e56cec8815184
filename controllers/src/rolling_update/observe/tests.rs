use std::collections::BTreeMap;

use jiff::Timestamp;
use platctrl_framework::cache::Tally;
use platctrl_framework::model::{Metadata, ObjectKey, Resource};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::ledger::{Act, Member};

/// Whether it is ready, on its way out, decided about, and for how many seconds it still counts
/// as young.
type Like = (bool, bool, bool, u64);

fn crew(name: &str, pods: &[Like]) -> Arc<Crew> {
    let mut kept = Kept::default();
    for (at, (ready, leaving, ..)) in pods.iter().enumerate() {
        let (node, pod) = (format!("n{at}"), format!("{name}{at}"));
        let key = ObjectKey::on_node(Pod::GROUP, Pod::PLURAL, &node, "default", &pod).unwrap();
        let mut metadata = Metadata::named(&pod);
        metadata.uid = pod.as_str().into();
        if *leaving {
            let deletion = json!({"uid": pod, "at": "2026-01-01T00:00:00Z", "by": "ann", "propagation": "Orphan"});
            metadata.deletion = Some(serde_json::from_value(deletion).unwrap());
        }
        let spec = json!({"nodeName": node, "launchables": {}});
        let mut object = Object::<Pod>::new(metadata, serde_json::from_value(spec).unwrap());
        let status = if *ready { "True" } else { "False" };
        let status = json!({"conditions": [{"type": "Ready", "status": status, "reason": "", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}]});
        object.status = serde_json::from_value(status).unwrap();
        kept.put(&Arc::new(key), Some(&object));
    }
    kept.crew().clone()
}

proptest! {
    #[test]
    fn a_plan_is_the_same_whether_all_pods_are_listed_or_those_that_decide(
        old in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u64..2), 0..40),
        new in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0u64..2), 0..40),
        (replicas, allowed, surge, limit) in (0u32..50, 0u32..30, 0u32..4, 0u32..50),
        (fewer, more, tolerated) in (0u32..3, 0u32..3, 0u32..4),
    ) {
        let (source, target) = (crew("old", &old), crew("new", &new));
        let mut open = Vec::new();
        let mut unconfirmed = HashMap::new();
        for (crew, likes) in [(&source, &old), (&target, &new)] {
            let mut pods: Vec<&Brief> = crew.pods().collect();
            pods.sort_by_key(|pod| pod.name()[3..].parse::<usize>().unwrap());
            for (pod, (ready, leaving, decided, young)) in pods.into_iter().zip(likes) {
                if *decided {
                    open.push(pod.uid.clone());
                }
                // Only what is healthy is young.
                if *young > 0 && *ready && !leaving {
                    unconfirmed.insert(pod.uid.clone(), Duration::from_secs(*young));
                }
            }
        }
        let members = open.iter().map(|uid| {
            let member = Member { healthy: true, leaving: false, spec: None, request: None };
            (uid.clone(), member)
        });
        let members: BTreeMap<Uid, Member> = members.collect();
        let mut account = Account::new(members, 0, Vec::new(), true);
        for uid in &open {
            account.enter(uid, Act::Delete, "test", Timestamp::UNIX_EPOCH).unwrap();
        }
        let (silent, nowhere) = (Names::default(), Names::default());
        let asked = Asked { account: &account, silent: &silent, unconfirmed: &unconfirmed, batch: plan::BATCH };
        let all = |crew: &Crew, replicas: u32| Side {
            replicas,
            pods: crew.pods().map(|pod| asked.facts(pod, &nowhere)).collect(),
            ..Side::default()
        };
        let number = |crew: &Crew| u32::try_from(crew.live()).unwrap();
        let (of_source, of_target) = (number(&source).saturating_sub(fewer), number(&target) + more);
        let mut observed = Observed {
            replicas, limit, goal: limit.max(replicas), surge, allowed, tolerated,
            batch: plan::BATCH,
            source: all(&source, of_source),
            target: all(&target, of_target),
            delay: None,
        };
        let listed = plan::plan(&observed);
        observed.source = asked.side(&source, of_source, &nowhere);
        observed.target = asked.side(&target, of_target, &nowhere);
        prop_assert_eq!(plan::plan(&observed), listed);
    }
}
