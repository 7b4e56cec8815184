//! The steps, and the table of an update: what each does, and what follows when it fails or when
//! the agent dies in it. The book shows the same table, and a test compares the two.

/// One thing to do. [`UPDATE`] says what each does that is part of an update.
///
/// The position of a pod among them is in its record, and each may be interrupted anywhere and
/// done again. Steps that have nothing to do (no hook for them, no script) are not in a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Ask whether this may run here.
    Authorise,
    /// Call the node's hooks before anything is fetched.
    BeforeInstall,
    /// Get the new version ready, up to what it needs to run.
    Fetch,
    /// A part of [`Fetch`](Self::Fetch): compare what came with its digest.
    Verify,
    /// A part of [`Fetch`](Self::Fetch): unpack it where nothing else is.
    Unpack,
    /// Call the hooks once it is there.
    AfterInstall,
    /// Change what can be changed while programs run, when nothing else differs: instead of all
    /// that follows.
    Adjust,
    /// Write its environment and configuration.
    Configure,
    /// Show that the pod is about to go, and wait.
    Drain,
    /// Run the old version's `bin/disable`.
    Disable,
    /// Stop the programs.
    Stop,
    /// Call the hooks before the new version is made the current one.
    BeforeLaunch,
    /// Make the next version the current one.
    Flip,
    /// Run the new version's `bin/post-activate`.
    PostActivate,
    /// Start the programs that have no supervisor.
    Start,
    /// Run the new version's `bin/enable`.
    Enable,
    /// Wait until it does its work.
    Healthy,
    /// Call the hooks once it does.
    AfterLaunch,
    /// Remove what no version needs any more.
    Prune,
    /// Go back to the version before, which runs no more: the next one cannot take over.
    Abandon,
    /// Go back to the version before: the current one does not do its work.
    Revert,
    /// Forget a version that was fetched and is not wanted any more.
    Discard,
    /// Call the hooks before a pod is removed.
    BeforeUninstall,
    /// Remove everything of the pod.
    Remove,
}

impl Step {
    /// Its name in failpoints: `agent.<name>` before it and `agent.<name>.done` after.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Authorise => "authorise",
            Self::BeforeInstall => "before-install",
            Self::Fetch => "fetch",
            Self::Verify => "verify",
            Self::Unpack => "unpack",
            Self::AfterInstall => "after-install",
            Self::Configure => "configure",
            Self::Drain => "drain",
            Self::Disable => "disable",
            Self::Stop => "stop",
            Self::BeforeLaunch => "before-launch",
            Self::Flip => "flip",
            Self::PostActivate => "post-activate",
            Self::Start => "start",
            Self::Enable => "enable",
            Self::Healthy => "healthy",
            Self::AfterLaunch => "after-launch",
            Self::Adjust => "adjust",
            Self::Prune => "prune",
            Self::Abandon => "abandon",
            Self::Revert => "revert",
            Self::Discard => "discard",
            Self::BeforeUninstall => "before-uninstall",
            Self::Remove => "remove",
        }
    }

    /// Whether it gets a version ready, beside the one that runs.
    #[must_use]
    pub const fn prepares(self) -> bool {
        matches!(
            self,
            Self::Authorise
                | Self::BeforeInstall
                | Self::Fetch
                | Self::Verify
                | Self::Unpack
                | Self::AfterInstall
        )
    }

    /// What the names of the supervised runs of its hooks or scripts begin with.
    pub(crate) const fn runs(self) -> Option<&'static str> {
        Some(match self {
            Self::Authorise => "after_auth_fail:",
            Self::BeforeInstall => "before_install:",
            Self::AfterInstall => "after_install:",
            Self::BeforeLaunch => "before_launch:",
            Self::AfterLaunch => "after_launch:",
            Self::BeforeUninstall => "before_uninstall:",
            Self::Disable => "disable:",
            Self::PostActivate => "post-activate:",
            Self::Enable => "enable:",
            _ => return None,
        })
    }

    /// What is said when it failed, in one word.
    pub(crate) const fn failure(self) -> &'static str {
        match self {
            Self::Authorise => "NotAuthorised",
            Self::Fetch | Self::Verify | Self::Unpack => "FetchFailed",
            Self::Start => "StartFailed",
            Self::Stop => "StopFailed",
            Self::Remove => "RemoveFailed",
            Self::PostActivate => "PostActivateFailed",
            Self::Enable => "EnableFailed",
            Self::Healthy => "NotHealthy",
            _ => "StepFailed",
        }
    }
}

/// A row of the table of an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The step.
    pub step: Step,
    /// What it does.
    pub effect: &'static str,
    /// What follows when it fails.
    pub on_failure: &'static str,
    /// What follows when the agent, or the machine, dies in it.
    pub on_crash: &'static str,
}

const fn row(
    step: Step,
    effect: &'static str,
    on_failure: &'static str,
    on_crash: &'static str,
) -> Row {
    Row {
        step,
        effect,
        on_failure,
        on_crash,
    }
}

/// An update, in order. The old version runs until `stop`.
pub const UPDATE: [Row; 18] = [
    row(
        Step::Authorise,
        "what is to run is allowed on this node; the order is noted in the pod's record",
        "old runs; `after_auth_fail` hooks; asked again every 5 minutes and when the spec changes",
        "asked again",
    ),
    row(
        Step::BeforeInstall,
        "`before_install` hooks",
        "old runs; a required hook is called again with backoff, another one only warned of",
        "hooks that had not ended are waited for, or called again where the machine went down; those that had are not called again",
    ),
    row(
        Step::Fetch,
        "user and ports found, artifacts fetched into the cache",
        "old runs; tried again with backoff",
        "fetched again, or found complete",
    ),
    row(
        Step::Verify,
        "each artifact has the digest that was promised",
        "old runs; what came is thrown away; tried again every 5 minutes and when the spec changes",
        "compared again",
    ),
    row(
        Step::Unpack,
        "unpacked under a name of its own, renamed when whole; the version is noted as `next`",
        "old runs; what was unpacked is removed; tried again",
        "the half is removed, and unpacked again",
    ),
    row(
        Step::AfterInstall,
        "`after_install` hooks",
        "as `before_install`",
        "as `before_install`",
    ),
    row(
        Step::Configure,
        "env and config of the new generation, in directories of its own",
        "old runs; tried again with backoff",
        "written again",
    ),
    row(
        Step::Drain,
        "`Ready=False`, reason Draining, for `drainDelay`",
        "cannot fail",
        "the rest of the delay is waited for",
    ),
    row(
        Step::Disable,
        "`bin/disable` of the old version, with its own env, within `terminationGracePeriod`",
        "warned of; goes on",
        "a script that still runs is waited for, one that ended is not run again, one that went down with the machine is",
    ),
    row(
        Step::Stop,
        "SIGTERM, `stopTimeout`, SIGKILL to all of the old version; not with `noHaltOnUpdate`",
        "tried again; the new one does not start beside it",
        "stopped again",
    ),
    row(
        Step::BeforeLaunch,
        "`before_launch` hooks",
        "Revert: the old version is started again. Stay: called again with backoff",
        "as `before_install`",
    ),
    row(
        Step::Flip,
        "`current` names the new generation, and the record says so",
        "tried again with backoff",
        "done again",
    ),
    row(
        Step::PostActivate,
        "`bin/post-activate` of the new version",
        "Revert: back to the old version. Stay: run again with backoff",
        "as `disable`",
    ),
    row(
        Step::Start,
        "one supervisor for each program",
        "the others start; that one is tried again with backoff",
        "those that run are left alone, the rest started",
    ),
    row(
        Step::Enable,
        "`bin/enable` of the new version",
        "Revert: back to the old version. Stay: run again with backoff",
        "as `disable`",
    ),
    row(
        Step::Healthy,
        "every program runs and the health check passes; without one, all have run for a second",
        "after `startTimeout`, three restarts, or an end for good. Revert: back to the old version. Stay: waited on",
        "waited on; `startTimeout` goes on, and begins anew after a boot",
    ),
    row(
        Step::AfterLaunch,
        "`after_launch` hooks",
        "new runs; a required hook is called again with backoff, another one only warned of",
        "as `before_install`",
    ),
    row(
        Step::Prune,
        "files of older generations removed",
        "tried at the next change",
        "done again",
    ),
];

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// The table of an update as Markdown.
    fn update_table() -> String {
        let mut text =
            "| step | effect | on failure | on a crash here |\n|---|---|---|---|\n".to_owned();
        for row in UPDATE {
            let Row {
                step,
                effect,
                on_failure,
                on_crash,
            } = row;
            let _ = writeln!(
                text,
                "| {} | {effect} | {on_failure} | {on_crash} |",
                step.name()
            );
        }
        text
    }

    #[test]
    fn the_table_is_in_the_order_of_the_steps() {
        assert!(UPDATE.is_sorted_by_key(|row| row.step));
        assert_eq!(UPDATE.last().map(|row| row.step), Some(Step::Prune));
        assert_eq!(update_table().lines().count(), 2 + UPDATE.len());
    }

    #[test]
    fn the_book_shows_this_table() {
        let book = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../book/src/concepts/updates.md");
        let page = std::fs::read_to_string(book).unwrap();
        assert!(page.contains(&update_table()), "{}", update_table());
    }
}
