//! Another process begins to judge nodes: what was judged stands, and nobody's time is shortened.

use super::*;

impl Fleet {
    /// Nobody judges any more.
    async fn observer_dies(&mut self) {
        self.runtime.abort();
        let _ = (&mut self.runtime).await;
    }

    /// Another process does.
    fn another_begins(&mut self) {
        (self._handle, self.runtime) = observer(&self.store, Limits::default());
    }

    /// n1 falls silent and is given up.
    async fn loses_one(&self) {
        self.agents[0].abort();
        tokio::time::sleep(Duration::from_secs(250)).await;
        until("it is lost", || async {
            self.says("n1", "Lost").await == Some(ConditionStatus::True)
        })
        .await;
    }

    /// n1 is given up, and has had all its time since.
    async fn is_lost_no_sooner(&self, since: tokio::time::Instant) {
        until("it is lost", || async {
            self.says("n1", "Lost").await == Some(ConditionStatus::True)
        })
        .await;
        let after = since.elapsed();
        assert!(after >= Duration::from_secs(300), "{after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_given_up_stays_lost_for_who_takes_over_and_is_back_when_it_is_heard_of() {
    let mut fleet = Fleet::of(5).await;
    fleet.loses_one().await;
    fleet.observer_dies().await;
    fleet.another_begins();
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fleet.says("n1", "Lost").await, Some(ConditionStatus::True));
        assert_eq!(
            fleet.says("n1", "Alive").await,
            Some(ConditionStatus::False)
        );
    }
    assert_eq!(fleet.says("n2", "Alive").await, Some(ConditionStatus::True));
    fleet.beats("n1");
    until("it is alive again", || async {
        fleet.says("n1", "Alive").await == Some(ConditionStatus::True)
            && fleet.says("n1", "Lost").await == Some(ConditionStatus::False)
    })
    .await;
    let node = fleet.node("n1").await;
    assert_eq!(node.status.detail.lost_after_beat, None);
}

#[tokio::test(start_paused = true)]
async fn one_that_beat_while_nobody_listened_is_not_lost_any_more() {
    let mut fleet = Fleet::of(5).await;
    fleet.loses_one().await;
    fleet.observer_dies().await;
    let beat = Transaction::new().put(Key::new("x/beat/n1").unwrap(), "back for a moment");
    fleet.store.commit(beat).await.unwrap();
    let began = tokio::time::Instant::now();
    fleet.another_begins();
    until("it is not given up any more", || async {
        fleet.says("n1", "Lost").await == Some(ConditionStatus::False)
    })
    .await;
    // It is given all its time anew.
    tokio::time::sleep(Duration::from_secs(200)).await;
    fleet.is_lost_no_sooner(began).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_is_silent_and_not_given_up_gets_its_whole_time_from_who_takes_over() {
    let mut fleet = Fleet::of(5).await;
    fleet.agents[0].abort();
    tokio::time::sleep(Duration::from_secs(250)).await;
    assert_eq!(
        fleet.says("n1", "Alive").await,
        Some(ConditionStatus::Unknown)
    );
    fleet.observer_dies().await;
    let began = tokio::time::Instant::now();
    fleet.another_begins();
    for _ in 0..295 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(fleet.says("n1", "Lost").await, Some(ConditionStatus::False));
        assert_eq!(
            fleet.says("n1", "Alive").await,
            Some(ConditionStatus::Unknown)
        );
    }
    fleet.is_lost_no_sooner(began).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_that_is_retired_ends_at_once_whoever_judges() {
    let mut fleet = Fleet::of(5).await;
    let pod = fleet.bare_pod("web-1").await;
    fleet.loses_one().await;
    fleet.observer_dies().await;
    fleet.retire("n1").await;
    let began = tokio::time::Instant::now();
    fleet.another_begins();
    until("the pod is removed", || async {
        !fleet.is_there(&pod).await
    })
    .await;
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
}
