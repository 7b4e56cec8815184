//! What is told of a pod: its status when it differs from the last one, and what happened.

use platctrl_framework::model::EventType;

use super::Pod;
use crate::plan::{Hold, Order};
use crate::report::{Facts, PodEvent, compose};

impl Pod {
    /// Tells what is so, if it is news.
    pub(super) fn tell(&mut self, order: &Order) {
        let desired = match order {
            Order::Want(desired) if !self.foreign(&desired.uid) => Some(&**desired),
            _ => self.record.last.as_ref(),
        };
        let facts = Facts {
            record: &self.record,
            desired,
            units: self.units.facts(),
            fitness: &self.units.fitness(),
            fetching: self.prepare.errand.is_some(),
            trouble: self.main.trouble.as_ref().or(self.prepare.trouble.as_ref()),
            hold: self.hold.as_ref(),
            gone: self.gone,
            node: &self.host.node,
            host_ip: &self.host.host_ip,
        };
        let report = compose(&facts);
        // Of nothing there is nothing to tell.
        if report.uid.is_empty() || self.told.as_ref() == Some(&report) {
            return;
        }
        report.phase.as_str().clone_into(&mut self.record.phase);
        self.told = Some(report.clone());
        self.observer.report(report);
    }

    pub(super) fn note_hold(&mut self, hold: Option<Hold>) {
        if let Some(hold) = &hold
            && self.hold.as_ref() != Some(hold)
        {
            self.event(EventType::Warning, hold.reason(), hold.message());
        }
        self.hold = hold;
    }

    pub(super) fn event(&self, event_type: EventType, reason: &'static str, message: String) {
        let uid = self.record.uid.clone();
        self.observer.event(PodEvent {
            name: self.name.clone(),
            uid,
            event_type,
            reason,
            message,
        });
    }
}
