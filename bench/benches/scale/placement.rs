//! One decision over a large fleet: 1,000 pods on 10,000 nodes that run 100,000 pods already.

use std::sync::Arc;
use std::time::Instant;

use platctrl_bench::{Goal, Result, ratio, raw};
use platctrl_controllers::placement::{
    Amounts, Fleet, FleetNode, Placement, PodNeeds, Request, Room, Spread,
};

const NODES: usize = 10_000;
const PODS: u32 = 1_000;
const TIMES: usize = 21;

fn fleet() -> Fleet {
    let amounts = |cpu, memory| Amounts {
        cpu,
        memory,
        pods: 1,
    };
    let pod = Arc::new(PodNeeds {
        namespace: "default".into(),
        app: "other".into(),
        amounts: amounts(100, 256 << 20),
        ports: vec![8080],
        ..PodNeeds::default()
    });
    Fleet::new((0..NODES).map(|index| {
        FleetNode {
            labels: Arc::new(
                [
                    ("role", "web".to_owned()),
                    ("zone", format!("z{}", index % 7)),
                ]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            ),
            room: Room {
                cpu: Some(4000),
                memory: Some(8 << 30),
                pods: Some(100),
            },
            pods: vec![pod.clone(); index % 21],
            ..FleetNode::named(&format!("node-{index:05}"))
        }
    }))
}

pub(crate) fn measure() -> Result<()> {
    let fleet = fleet();
    let selector = "role in (web,api),zone!=z9".parse()?;
    let mut request = Request::new("default/hello", selector);
    request.needs.namespace = "default".into();
    request.needs.app = "hello".into();
    request.needs.amounts = Amounts {
        cpu: 500,
        memory: 1 << 30,
        pods: 1,
    };
    request.needs.conflicts = vec!["batch-*".into()];
    request.needs.ports = vec![9090];
    request.spread_over = Some("zone".into());
    let mut times: Vec<f64> = (0..TIMES)
        .map(|_| {
            let begun = Instant::now();
            let chosen = Spread.place(&fleet, &request, PODS);
            let took = begun.elapsed().as_secs_f64() * 1000.0;
            assert_eq!(chosen.len(), PODS as usize, "every pod has a place");
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let name = format!("{PODS} placements on {NODES} nodes, with room, a port, a conflict, spread");
    raw(&name, "ms", &times);
    let name = "scale.place-ms.1000-pods-10000-nodes";
    ratio(name, times[TIMES / 2], Goal::AtMost(50.0));
    Ok(())
}
