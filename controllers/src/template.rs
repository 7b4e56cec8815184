//! Pods as their owner's template wants them.

use std::collections::BTreeMap;
use std::sync::Arc;

use platctrl_framework::cache::{Cached, Head, View};
use platctrl_framework::controller::Context;
use platctrl_framework::model::{Metadata, Object, ObjectKey, OwnerReference, Resource, Selector};
use platctrl_kinds::{Pod, PodSpec, PodTemplate, ReplicationController, condition};

use crate::crew::Shape;
use crate::placement::PodNeeds;

/// Letters and digits behind the owner's name in a pod's.
const SUFFIX: usize = 10;

/// The label by which a pod without an owner says whose it was: an owner of that name that comes
/// later takes it over. Setting it by hand gives a pod to an owner.
pub const ORPHAN_OF: &str = "platctrl.dev/orphan-of";

/// The label that says of which kind the owner was. Left out: a replication controller.
pub const ORPHAN_KIND: &str = "platctrl.dev/orphan-kind";

const KIND_LEFT_OUT: &str = ReplicationController::SINGULAR;

/// Who makes pods of a template.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) metadata: Metadata,
    pub(crate) reference: OwnerReference,
    pub(crate) template: PodTemplate,
    /// Its kind as people write it, in small letters.
    pub(crate) kind: &'static str,
}

impl Workload {
    pub(crate) fn of<K: Resource>(owner: &Object<K>, template: &PodTemplate) -> Self {
        Self {
            metadata: owner.metadata.clone(),
            reference: owner.owner_reference(),
            template: template.clone(),
            kind: K::SINGULAR,
        }
    }

    /// Its namespace and name.
    pub(crate) fn path(&self) -> String {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        format!("{namespace}/{}", self.metadata.name)
    }

    /// Who it is in ledgers, grants and tombstones.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.kind, self.metadata.name)
    }

    /// A pod's spec on a node.
    pub(crate) fn spec(&self, node: &str) -> PodSpec {
        let spec = &self.template.spec;
        PodSpec {
            node_name: Some(node.to_owned()),
            app: Some(self.app().to_owned()),
            ..spec.clone()
        }
    }

    /// What its pods have in common.
    pub(crate) fn shape(&self) -> Shape {
        let PodTemplate { metadata, spec } = &self.template;
        Shape {
            namespace: self.metadata.namespace.clone(),
            labels: metadata.labels.clone(),
            annotations: metadata.annotations.clone(),
            spec: PodSpec {
                node_name: None,
                app: Some(self.app().to_owned()),
                ..spec.clone()
            },
        }
    }

    pub(crate) fn app(&self) -> &str {
        let app = self.template.spec.app.as_deref();
        app.unwrap_or(&self.metadata.name)
    }

    /// What each of its pods asks of a node.
    pub(crate) fn needs(&self) -> PodNeeds {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        PodNeeds::of(namespace, &self.metadata.name, &self.template.spec)
    }

    /// The pod is as the template wants it. Labels and annotations that others added stay.
    pub(crate) fn is_current(&self, pod: &Object<Pod>) -> bool {
        self.wants_metadata(&pod.metadata.labels, &pod.metadata.annotations)
            && self.wants_spec(&pod.spec)
    }

    /// As [`Workload::is_current`], of all pods that are alike.
    pub(crate) fn wants(&self, shape: &Shape) -> bool {
        self.wants_metadata(&shape.labels, &shape.annotations) && self.wants_spec_of(shape)
    }

    /// As [`Workload::wants_spec`], of all pods that are alike.
    pub(crate) fn wants_spec_of(&self, shape: &Shape) -> bool {
        shape.spec.app.as_deref() == Some(self.app())
            && is_same_elsewhere(&shape.spec, &self.template.spec)
    }

    fn wants_metadata(
        &self,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
    ) -> bool {
        let wanted = &self.template.metadata;
        let has = |own: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>| {
            wanted
                .iter()
                .all(|(name, value)| own.get(name) == Some(value))
        };
        has(labels, &wanted.labels) && has(annotations, &wanted.annotations)
    }

    /// As the spec would be [made](Self::spec) for its node, without making one.
    pub(crate) fn wants_spec(&self, spec: &PodSpec) -> bool {
        spec.node_name.is_some()
            && spec.app.as_deref() == Some(self.app())
            && is_same_elsewhere(spec, &self.template.spec)
    }

    pub(crate) fn new_pod(&self, node: &str, context: &Context) -> Object<Pod> {
        // A pod's name is a key segment of at most 63 bytes; the owner's may be cut for it.
        let stem: String = self.metadata.name.chars().take(63 - SUFFIX - 1).collect();
        let metadata = Metadata {
            name: format!("{stem}-{}", context.environment().suffix(SUFFIX)),
            namespace: self.metadata.namespace.clone(),
            labels: self.template.metadata.labels.clone(),
            annotations: self.template.metadata.annotations.clone(),
            owner_references: vec![self.reference.clone()],
            ..Metadata::default()
        };
        Object::new(metadata, self.spec(node))
    }

    /// The pod, brought to the template in place.
    pub(crate) fn brought(&self, pod: &Object<Pod>) -> Object<Pod> {
        let wanted = &self.template.metadata;
        let mut pod = pod.clone();
        pod.spec = self.spec(pod.spec.node_name.as_deref().unwrap_or_default());
        pod.metadata.labels.extend(wanted.labels.clone());
        pod.metadata.annotations.extend(wanted.annotations.clone());
        pod
    }

    /// The pod, with this owner.
    pub(crate) fn adopted(&self, pod: &Object<Pod>) -> Object<Pod> {
        let mut pod = pod.clone();
        pod.metadata.labels.remove(ORPHAN_OF);
        pod.metadata.labels.remove(ORPHAN_KIND);
        pod.metadata.owner_references.push(self.reference.clone());
        pod
    }

    /// The pod, without this owner.
    pub(crate) fn orphaned(&self, pod: &Object<Pod>) -> Object<Pod> {
        let mut pod = pod.clone();
        let owners = &mut pod.metadata.owner_references;
        owners.retain(|owner| owner.uid != self.reference.uid);
        let labels = &mut pod.metadata.labels;
        labels.insert(ORPHAN_OF.to_owned(), self.metadata.name.clone());
        labels.insert(ORPHAN_KIND.to_owned(), self.kind.to_owned());
        pod
    }

    /// The pods without an owner that wait for this one.
    pub(crate) fn orphans(&self, view: &View) -> Vec<Arc<Object<Pod>>> {
        let name = self.metadata.name.clone();
        let Ok(label) = Selector::of_labels(&[(ORPHAN_OF.to_owned(), name)].into()) else {
            return Vec::new();
        };
        let found = view.list::<Pod>().matching(&label).into_iter();
        found
            .filter(|pod| waits_for(pod, self.kind) == Some(&self.metadata.name))
            .filter(|pod| pod.metadata.namespace == self.metadata.namespace)
            .collect()
    }
}

/// Two specs are the same but for node and app.
pub(crate) fn is_same_elsewhere(one: &PodSpec, other: &PodSpec) -> bool {
    let PodSpec {
        node_name: _,
        app: _,
        run_as,
        launchables,
        config,
        ports,
        health,
        liveness,
        liveness_offline,
        termination_grace_period,
        drain_delay,
        on_failed_start,
        start_timeout,
        secrets,
        shared_tmp,
        keep_data,
        placement,
        singleton,
    } = one;
    *run_as == other.run_as
        && *launchables == other.launchables
        && *config == other.config
        && *ports == other.ports
        && *health == other.health
        && *liveness == other.liveness
        && *liveness_offline == other.liveness_offline
        && *termination_grace_period == other.termination_grace_period
        && *drain_delay == other.drain_delay
        && *on_failed_start == other.on_failed_start
        && *start_timeout == other.start_timeout
        && *secrets == other.secrets
        && *shared_tmp == other.shared_tmp
        && *keep_data == other.keep_data
        && *placement == other.placement
        && *singleton == other.singleton
}

/// The name of the owner of this kind that a pod without an owner waits for.
fn waits_for<'p>(pod: &'p Object<Pod>, kind: &str) -> Option<&'p String> {
    let Metadata {
        labels,
        owner_references,
        ..
    } = &pod.metadata;
    let of_kind = labels
        .get(ORPHAN_KIND)
        .map_or(KIND_LEFT_OUT, String::as_str);
    let waits = !pod.metadata.is_deleted() && owner_references.is_empty() && of_kind == kind;
    labels.get(ORPHAN_OF).filter(|_| waits)
}

/// The key of the owner that a pod waits for.
pub(crate) fn adopter<K: Resource>(pod: &Head<'_>) -> Option<ObjectKey> {
    let labels = pod.labels();
    let name = labels.get(ORPHAN_OF)?;
    let of_kind = labels
        .get(ORPHAN_KIND)
        .map_or(KIND_LEFT_OUT, String::as_str);
    let waits = !pod.is_deleted() && pod.owners().next().is_none() && of_kind == K::SINGULAR;
    let namespace = pod.key().namespace().filter(|_| waits)?;
    ObjectKey::namespaced(K::GROUP, K::PLURAL, namespace, name).ok()
}

/// What a program that runs these controllers keeps of pods: they are found by whose they were
/// without looking at all of them. Without it everything works, more slowly in a large fleet.
#[must_use]
pub fn cached_pods() -> Cached<Pod> {
    Cached::new().label(ORPHAN_OF)
}

pub(crate) fn is_ready(pod: &Object<Pod>) -> bool {
    pod.status.conditions.is_true(condition::READY)
}

pub(crate) fn created(pod: &Object<Pod>) -> i64 {
    created_at(&pod.metadata)
}

/// When an object was created, as a number that grows.
pub(crate) fn created_at(metadata: &Metadata) -> i64 {
    let at = metadata.creation_timestamp;
    at.map_or(0, jiff::Timestamp::as_microsecond)
}
