//! What a scrape shows.

use super::*;

#[derive(Debug)]
struct Fixed(Vec<RuntimeFacts>);

impl Collector for Fixed {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        write(encoder, &self.0, &[])
    }
}

fn text(facts: Vec<RuntimeFacts>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Fixed(facts)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn facts() -> RuntimeFacts {
    RuntimeFacts {
        name: "controllers".to_owned(),
        leads: Some(true),
        sources: vec![SourceFacts {
            prefix: "o/".to_owned(),
            revision: Revision::from_u64(40),
            ..SourceFacts::default()
        }],
        controllers: vec![ControllerFacts {
            name: "sites".to_owned(),
            ready: [3, 0, 1],
            ..ControllerFacts::default()
        }],
        newest: Revision::from_u64(43),
        ..RuntimeFacts::default()
    }
}

#[test]
fn every_label_is_there_before_anything_happened() {
    let text = text(vec![facts()]);
    for line in [
        r#"controller_runtime_reconcile_total{controller="sites",runtime="controllers",result="error"} 0"#,
        r#"controller_runtime_reconcile_total{controller="sites",runtime="controllers",result="success"} 0"#,
        r#"controller_runtime_reconcile_panics_total{controller="sites",runtime="controllers"} 0"#,
        r#"controller_runtime_reconcile_time_seconds_count{controller="sites",runtime="controllers"} 0"#,
        r#"controller_runtime_reconcile_time_seconds_bucket{le="+Inf",controller="sites",runtime="controllers"} 0"#,
        r#"workqueue_depth{name="sites",controller="sites",runtime="controllers",priority="change"} 3.0"#,
        r#"workqueue_depth{name="sites",controller="sites",runtime="controllers",priority="retry"} 0.0"#,
        r#"workqueue_retries_total{name="sites",controller="sites",runtime="controllers"} 0"#,
        r#"platctrl_store_requests_total{client="controllers",operation="commit",outcome="unknown"} 0"#,
        r#"leader_election_master_status{name="controllers"} 1.0"#,
        r#"platctrl_cache_lag_revisions{source="o/",runtime="controllers"} 3.0"#,
        r#"platctrl_failsafe_holds{guard="vanished",runtime="controllers"} 0.0"#,
        r#"platctrl_convergence_seconds_count{controller="sites",runtime="controllers"} 0"#,
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
}

#[test]
fn each_family_is_described_once_though_there_are_several_runtimes() {
    let mut agent = facts();
    agent.name = "agent".to_owned();
    let text = text(vec![facts(), agent]);
    let mut described: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let count = described.len();
    assert!(count > 30, "{text}");
    described.dedup();
    described.sort_unstable();
    described.dedup();
    assert_eq!(described.len(), count);
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_run_is_counted_under_one_result() {
    let mut all: Vec<_> = Ending::ALL.into_iter().filter_map(result_of).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, ["error", "requeue", "requeue_after", "success"]);
}
