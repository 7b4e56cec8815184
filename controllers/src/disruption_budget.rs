//! Disruption budgets: says what each comes to.
//!
//! That a budget holds is not done here: whoever takes pods away asks the workload's ledger,
//! which reads the budgets itself.

use std::collections::BTreeSet;
use std::sync::Arc;

use platctrl_framework::cache::{Owners, View};
use platctrl_framework::controller::{Action, Context, Controller, ReconcileError};
use platctrl_framework::model::{Condition, ConditionStatus, Object, ObjectKey, Selector, Uid};
use platctrl_kinds::{
    DaemonSet, DisruptionBudget, DisruptionBudgetStatus, Node, Pod, ReplicationController,
    RollingUpdate,
};

use crate::crew::{Crew, Kept};
use crate::daemon_set;
use crate::ledger::Ledger;
use crate::nodes::Nodes;

/// Workloads that are named in a message.
const NAMED: usize = 5;

/// What is remembered of workloads' pods from run to run.
#[derive(Clone, Debug, Default)]
struct Memory {
    pods: Owners<Pod, Kept>,
    nodes: Nodes,
}

impl Memory {
    fn crew(&self, view: &View, owner: &Uid) -> Arc<Crew> {
        self.pods.of(view, owner, |kept| kept.crew().clone())
    }
}

/// The controller.
#[must_use]
pub fn controller() -> Controller<DisruptionBudget> {
    let budgets = |namespace: Option<&str>, view: &View| {
        let query = view.list::<DisruptionBudget>();
        let keys: Vec<ObjectKey> = match namespace {
            Some(namespace) => query.in_namespace(namespace).keys(),
            None => query.keys(),
        };
        keys
    };
    let memory = Memory::default();
    let run = move |budget, context| reconcile(budget, context, memory.clone());
    Controller::new("disruptionbudget", run)
        .watches_heads::<Pod>(move |pod, view| budgets(pod.key().namespace(), view))
        .watches::<ReplicationController>(move |it, view| {
            budgets(it.metadata.namespace.as_deref(), view)
        })
        .watches::<DaemonSet>(move |it, view| budgets(it.metadata.namespace.as_deref(), view))
        .watches::<RollingUpdate>(move |it, view| budgets(it.metadata.namespace.as_deref(), view))
        .watches::<Node>(move |_, view| budgets(None, view))
}

/// What a budget comes to.
#[derive(Default)]
struct Sum {
    detail: DisruptionBudgetStatus,
    /// Workloads of which nothing may be taken away, and their numbers.
    blocked: Vec<String>,
    /// Those that have fewer healthy pods than they should.
    below: Vec<String>,
    /// All of them.
    all: Vec<String>,
    counted: BTreeSet<String>,
}

impl Sum {
    fn add(&mut self, name: &str, ledger: &Ledger) {
        // Both controllers of a roll have one.
        if !self.counted.insert(ledger.key().to_string()) {
            return;
        }
        let account = ledger.account();
        let (healthy, floor) = (account.healthy(), account.floor());
        self.detail.workloads += 1;
        self.detail.healthy += healthy;
        self.detail.allowed += account.allowed();
        let numbers = format!("{name}: {healthy} healthy, {floor} needed");
        if healthy < floor {
            self.below.push(numbers.clone());
        }
        let allowed = account.allowed();
        self.all.push(format!("{numbers}, {allowed} may go"));
        if allowed == 0 {
            self.blocked
                .push(format!("{numbers}: none may go until more are healthy"));
        }
    }
}

fn named(workloads: &[String]) -> String {
    let more = workloads.len().saturating_sub(NAMED);
    let mut text = workloads
        .iter()
        .take(NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join("; ");
    if more > 0 {
        text.push_str(&format!("; and {more} more"));
    }
    text
}

fn count(namespace: &str, selector: &Selector, view: &View, memory: &Memory) -> Sum {
    let mut sum = Sum::default();
    let silent = memory.nodes.silent(view);
    let crew = |owner: &Uid| memory.crew(view, owner);
    let selects = |owner: &Uid| {
        let crew = crew(owner);
        crew.alike()
            .any(|alike| selector.matches(&alike.shape.labels))
    };
    for controller in view.list::<ReplicationController>().in_namespace(namespace) {
        // One that is on its way between ledgers is counted when it has arrived.
        if selects(&controller.metadata.uid)
            && let Ok(ledger) = Ledger::of_controller_with(view, &controller, crew, &silent)
        {
            sum.add(&controller.metadata.name, &ledger);
        }
    }
    for set in view.list::<DaemonSet>().in_namespace(namespace) {
        if selects(&set.metadata.uid)
            && let Some(Ok(ledger)) = daemon_set::ledger(view, &set)
        {
            sum.add(&set.metadata.name, &ledger);
        }
    }
    sum
}

async fn reconcile(
    budget: Arc<Object<DisruptionBudget>>,
    context: Context,
    memory: Memory,
) -> Result<Action, ReconcileError> {
    let selector: Selector = (budget.spec.pod_selector)
        .parse()
        .map_err(ReconcileError::terminal)?;
    let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
    let sum = count(namespace, &selector, context.view(), &memory);
    let (now, generation) = (context.environment().now(), budget.metadata.generation);
    let mut status = budget.status.clone();
    status.observed_generation = Some(generation);
    let intent = context.joined().intent;
    status.observed_spec = intent.map(|intent| intent.value.spec_digest());
    let is = |holds: bool| match holds {
        true => ConditionStatus::True,
        false => ConditionStatus::False,
    };
    let (holds, reason) = match (sum.blocked.is_empty(), sum.detail.workloads) {
        (_, 0) => (ConditionStatus::Unknown, "SelectsNothing"),
        (true, _) => (ConditionStatus::True, "SomeMayGo"),
        (false, _) => (ConditionStatus::False, "NoneMayGo"),
    };
    let (enough, why) = match (sum.below.is_empty(), sum.detail.workloads) {
        (_, 0) => (ConditionStatus::Unknown, "SelectsNothing"),
        (true, _) => (ConditionStatus::True, "EnoughHealthy"),
        (false, _) => (ConditionStatus::False, "TooFewHealthy"),
    };
    let no_pod = "no pod of any workload has labels that spec.podSelector matches";
    let nothing = sum.detail.workloads == 0;
    let told = |some: &[String]| match some {
        _ if nothing => no_pod.to_owned(),
        [] => named(&sum.all),
        some => named(some),
    };
    for condition in [
        Condition::new("Disruptable", holds, reason, told(&sum.blocked)),
        Condition::new("Available", enough, why, told(&sum.below)),
        // It does nothing by itself: who takes pods away asks for it.
        Condition::new("Progressing", is(false), "Settled", ""),
        Condition::new(
            "Stalled",
            is(nothing),
            if nothing { "SelectsNothing" } else { "Counted" },
            if nothing { no_pod } else { "" },
        ),
        Condition::new("Held", is(false), "Free", ""),
    ] {
        status.conditions.set(condition, generation, now);
    }
    let before = budget.status.detail.observed_revision;
    status.detail = DisruptionBudgetStatus {
        observed_revision: before,
        ..sum.detail
    };
    if status != budget.status {
        status.detail.observed_revision = Some(context.view().revision());
    }
    let mut changes = context.changes();
    changes.report::<DisruptionBudget>(&status)?;
    changes.commit().await?;
    Ok(Action::await_change())
}
