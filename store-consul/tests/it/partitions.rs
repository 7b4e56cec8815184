//! Networks that are cut, between namespaces. Root only.

use std::sync::Arc;
use std::time::Duration;

use platctrl_framework::environment::Environment;
use platctrl_framework::store::{Store, StoreError, Transaction, WatchEvent};
use platctrl_store_consul::ConsulStore;
use platctrl_test_support::network::Network;

use crate::helpers::{key, next_news, prefix, put, run, until, value};
use crate::server::{Cluster, Plan, root, wait_until};
use crate::work::Work;

#[test]
fn a_client_whose_agent_is_cut_off_from_the_leader_alone_goes_on() {
    let Some(network) = Network::new(4) else {
        return;
    };
    let mut places = network.places();
    let (address, within) = places.pop().expect("four");
    let cluster = Cluster::start_at(Plan::three(), places);
    let agent = cluster.start_agent_at(address, within);
    run(async {
        let address = format!("consul://{}:8500/{}", agent.address, root());
        let mut options = cluster.options();
        options.timeout = Duration::from_secs(3);
        let environment = Environment::system();
        let store = ConsulStore::open(&address.parse().unwrap(), options, environment).await;
        let store = Arc::new(store.unwrap());
        let work = Work::begin(&store);
        work.more(20).await;
        let leader = cluster.leader().expect("a leader");
        assert!(network.reaches(3, leader, 8500));
        network.cut(3, leader, 8500);
        work.more(40).await;
        assert!(
            cluster.servers[leader].is_leader(),
            "for the servers nothing has happened"
        );
        network.heal(3, leader);
        work.more(20).await;
        work.check(&store).await;
    });
    drop((agent, cluster));
}

#[test]
fn a_client_inside_a_minority_is_told_so_and_nothing_it_was_refused_lands() {
    let Some(network) = Network::new(3) else {
        return;
    };
    let cluster = Cluster::start_at(Plan::three(), network.places());
    run(async {
        let root = root();
        // The leader is alone: it goes on leading until it notices.
        let alone = cluster.leader().expect("a leader");
        let others = [(alone + 1) % 3, (alone + 2) % 3];
        let mut options = cluster.options();
        options.timeout = Duration::from_secs(2);
        let address = cluster.address(alone, &root);
        let inside = ConsulStore::open(&address, options, Environment::system()).await;
        let inside = inside.unwrap();
        let outside = Arc::new(cluster.store_at(others[0], &root).await);
        let before = put(&inside, "o/side/a", "before").await;
        let mut watch = inside.watch(prefix("o/side/"), before);
        let work = Work::begin(&outside);
        work.more(20).await;

        for other in others {
            network.cut(alone, other, 8500);
        }
        wait_until(Duration::from_secs(60), "another leader", || {
            others
                .iter()
                .any(|other| cluster.servers[*other].is_leader())
        });
        work.more(20).await;
        put(outside.as_ref(), "o/side/a", "outside").await;
        // Whoever asks the minority is not shown yesterday's state as today's.
        until("a read inside is refused", || async {
            match inside.get(&[key("o/side/a")]).await {
                Err(error) => {
                    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
                    true
                }
                Ok(snapshot) => panic!("{snapshot:?}"),
            }
        })
        .await;
        let mut refused = 0;
        for n in 0..3 {
            let late = Transaction::new().put(key(&format!("o/late/{n}")), "late");
            match inside.commit(late).await {
                Err(StoreError::Unavailable { .. }) => refused += 1 << n,
                Err(StoreError::Unknown { .. }) => {}
                other => panic!("{other:?}"),
            }
        }

        for other in others {
            network.heal(alone, other);
        }
        until("the minority is part of it again", || async {
            inside.get(&[]).await.is_ok()
        })
        .await;
        assert_eq!(value(&inside, "o/side/a").await.as_deref(), Some("outside"));
        put(&inside, "o/side/a", "after").await;
        for n in (0..3).filter(|n| refused & (1 << n) != 0) {
            let late = format!("o/late/{n}");
            assert_eq!(value(outside.as_ref(), &late).await, None, "{late}");
        }
        // The watch inside ended, or tells what happened outside; never of a delete.
        match next_news(&mut watch).await {
            Some(Ok(WatchEvent::Changes { changes, .. })) => {
                let values = changes.iter().map(|change| match change {
                    platctrl_framework::store::Change::Put(record) => record.value.clone(),
                    delete => panic!("{delete:?}"),
                });
                assert!(values.into_iter().all(|value| value != "before"));
            }
            Some(Ok(WatchEvent::Reset { .. }) | Err(_)) => {}
            other => panic!("{other:?}"),
        }
        work.check(outside.as_ref()).await;
    });
    drop(cluster);
}
