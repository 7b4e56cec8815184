//! What is so with a pod, as plain data for the plan.

use std::time::Duration;

use platctrl_framework::model::Uid;

use super::Pod;
use crate::hooks::HookEvent;
use crate::plan::{HookedEvents, Observed, Order};
use crate::state::DrainStart;
use crate::version::{Desired, Version};

impl Pod {
    pub(super) fn observe(&self, order: &Order) -> Observed {
        let record = &self.record;
        let seen = record.last.as_ref().filter(|last| last.uid == record.uid);
        let scripts =
            |version: &Option<Version>| version.as_ref().map(Version::scripts).unwrap_or_default();
        Observed {
            uid: record.uid.clone(),
            unidentified: self.unidentified,
            seen: seen.map(|last| (last.generation, last.digest)),
            current: record.current.as_ref().map(|version| version.digest),
            next: record.next.as_ref().map(|version| version.digest),
            preparation: record
                .prepared
                .as_ref()
                .map(|prepared| (prepared.digest, prepared.preparation)),
            position: record.position,
            drained: self.drain_left().is_zero(),
            at_rest: self
                .units
                .at_rest(|program| !self.is_left_alone(program, order)),
            missing: self.may_begin()
                && record.current.as_ref().is_some_and(|current| {
                    let generation = current.generation;
                    current
                        .programs
                        .keys()
                        .any(|it| self.units.needs_start(it, generation))
                }),
            stale: self.stale && record.current.is_some(),
            singleton: (record.current.iter().chain(&record.next))
                .any(|version| version.spec.singleton),
            failed: self.main.trouble.is_some(),
            quarantined: record
                .quarantined
                .as_ref()
                .map(|it| (it.digest, it.why.clone())),
            reverting: record.reverting,
            current_scripts: scripts(&record.current),
            next_scripts: scripts(&record.next),
            hooked: self.hooked(),
            adjustable: self.is_adjustable(order),
        }
    }

    /// Whether programs that do not run may be started.
    pub(super) fn may_begin(&self) -> bool {
        !self.is_held_down() && self.situation.borrow().gate.refuses(&self.name).is_none()
    }

    /// For which events there are hooks. What cannot be told is assumed, and told by the step.
    pub(super) fn hooked(&self) -> HookedEvents {
        let Ok(hooks) = self.host.hooks.all() else {
            return HookedEvents {
                before_install: true,
                after_install: true,
                before_launch: true,
                after_launch: true,
                before_uninstall: true,
            };
        };
        let any = |event| hooks.iter().any(|hook| hook.events.contains(&event));
        HookedEvents {
            before_install: any(HookEvent::BeforeInstall),
            after_install: any(HookEvent::AfterInstall),
            before_launch: any(HookEvent::BeforeLaunch),
            after_launch: any(HookEvent::AfterLaunch),
            before_uninstall: any(HookEvent::BeforeUninstall),
        }
    }

    /// The version that takes over leaves this program's process alone.
    pub(super) fn is_left_alone(&self, program: &str, order: &Order) -> bool {
        let ends = matches!(order, Order::Want(desired) if desired.tombstone.is_some());
        let next = self.record.next.as_ref().filter(|_| !ends);
        next.is_some_and(|next| next.leaves_alone(program)) && self.units.is_active(program)
    }

    /// How much of the drain delay is left.
    pub(super) fn drain_left(&self) -> Duration {
        let Some(current) = &self.record.current else {
            return Duration::ZERO;
        };
        let delay = current.drain_delay();
        match self.record.draining.as_ref().map(DrainStart::elapsed) {
            Some(Some(elapsed)) => delay.saturating_sub(elapsed),
            Some(None) => Duration::ZERO,
            None => delay,
        }
    }

    /// The order, if it is one that the record may follow.
    pub(super) fn accepted<'a>(&self, order: &'a Order) -> Option<&'a Desired> {
        match order {
            Order::Want(desired) if self.hold.is_none() => Some(desired),
            _ => None,
        }
    }

    /// Another pod of this name has its programs here.
    pub(super) fn foreign(&self, uid: &Uid) -> bool {
        !self.record.uid.is_empty() && self.record.uid != *uid
    }

    /// Programs are being stopped, or about to be.
    pub(super) fn is_stopping(&self) -> bool {
        self.record.position.is_stopping()
    }
}
