//! `launch --local`: one pod of a manifest without a server, until it is interrupted or the pod's
//! programs have ended for good.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use platctrl_agent::{HostConfig, LogQuery, LogReader, Observer, PodEvent, PodName, Report};
use platctrl_framework::model::{EventType, KindDefinition, RawObject, schema};
use platctrl_kinds::{Pod, PodPhase, ReplicationController};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Setting;
use crate::error::{Failure, Result};
use crate::manifest::{self, Manifests};
use crate::{output, place};

#[derive(Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Run it here, without a server
    #[arg(long, required = true)]
    local: bool,
    /// A manifest of a Pod, or of a ReplicationController of which one pod is run
    manifest: PathBuf,
}

pub(crate) fn run(args: &LaunchArgs, setting: &Setting) -> Result<()> {
    let mut documents = Manifests::read(std::slice::from_ref(&args.manifest))?.check()?;
    let document = match documents.len() {
        1 => documents.remove(0),
        count => {
            return Err(Failure::usage(format!(
                "{} has {count} documents",
                args.manifest.display()
            ))
            .hint("give one with a Pod or a ReplicationController"));
        }
    };
    let known = [
        KindDefinition::of::<Pod>(),
        KindDefinition::of::<ReplicationController>(),
    ];
    if let Some(kind) = known
        .iter()
        .find(|kind| kind.kind == document.text("/kind"))
    {
        let found = schema::check_object(kind, &document.value);
        let found = found
            .iter()
            .map(|error| document.problem(&error.path, &error.problem));
        let found: Vec<_> = found.collect();
        if !found.is_empty() {
            return Err(manifest::problems(&found));
        }
    }
    let manifest: RawObject = serde_json::from_value(document.value.clone())
        .map_err(|error| Failure::failed(format!("{}: {error}", document.file)))?;
    let data_dir = match setting.given_data_dir() {
        Some(dir) => place::data_dir(Some(dir))?,
        // Beside that of `up`, which may be running.
        None => {
            let mut name = setting.data_dir()?.into_os_string();
            name.push("-local");
            name.into()
        }
    };
    let data_dir = crate::up::make_data_dir(&data_dir)?;
    let _lock = crate::up::take(&data_dir)?;
    let mut config = HostConfig::new(&data_dir, "local");
    config.allow_unverified = true;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    output::note(format_args!(
        "Ctrl-C stops the pod; its log is under {}/pods/",
        data_dir.display()
    ));
    runtime.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(stop_on_signal(stop.clone()));
        let (over, ended) = oneshot::channel();
        let teller = Arc::new(Teller {
            last: Mutex::default(),
            over: Mutex::new(Some(over)),
        });
        let end = end_with_the_pod(&data_dir, ended, stop.clone());
        let launched =
            platctrl_agent::launch_local(config, &manifest, &document.base, teller, stop.clone());
        let launched = async {
            let launched = launched.await;
            // Whatever came of it, nobody waits for the pod's end any more.
            stop.cancel();
            launched
        };
        let (launched, end) = tokio::join!(launched, end);
        launched.map_err(|error| {
            let text = error.to_string();
            // Problems with fields come one a line, as FIELD: PROBLEM.
            let lines = text.lines().map(|line| match line.split_once(": ") {
                Some((field, problem)) if !field.contains(' ') => document.problem(field, problem),
                _ => format!("{}: {line}", document.file),
            });
            Failure::failed(lines.collect::<Vec<_>>().join("\n  "))
        })?;
        end
    })
}

/// Waits until nothing of the pod is to be started any more, shows what its programs wrote, which
/// goes with the pod, and ends the launch.
async fn end_with_the_pod(
    data_dir: &Path,
    ended: oneshot::Receiver<Report>,
    stop: CancellationToken,
) -> Result<()> {
    let report = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        report = ended => match report {
            Ok(report) => report,
            Err(_) => return Ok(()),
        },
    };
    let (data_dir, name) = (data_dir.to_owned(), report.name.clone());
    let exits = report.status.exits.iter();
    let programs: BTreeSet<String> = exits.map(|exit| exit.launchable.clone()).collect();
    let shown = tokio::task::spawn_blocking(move || show_logs(&data_dir, &name, &programs));
    let shown = shown.await.map_err(Failure::failed);
    stop.cancel();
    shown??;
    match report.phase {
        PodPhase::Failed => Err(Failure::failed(output::plain(&report.status.message))
            .hint("what it wrote is above; put it right and launch it again")),
        _ => Ok(()),
    }
}

fn show_logs(data_dir: &Path, pod: &PodName, programs: &BTreeSet<String>) -> Result<()> {
    for program in programs {
        let mut query = LogQuery::default();
        query.program = Some(program.clone());
        let Ok(log) = LogReader::open(data_dir, pod, query) else {
            continue;
        };
        if programs.len() > 1 {
            output::print(format_args!("==> {} <==\n", output::plain(program)))?;
        }
        let failed = std::cell::RefCell::new(Ok(()));
        let send = |piece: bytes::Bytes| {
            *failed.borrow_mut() = output::print_bytes(&piece);
            failed.borrow().is_ok()
        };
        log.copy(&|| false, &send).map_err(Failure::failed)?;
        failed.into_inner()?;
    }
    Ok(())
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    output::note("stopping");
    stop.cancel();
}

/// Tells a person what happens to the pod.
#[derive(Debug)]
struct Teller {
    last: Mutex<String>,
    /// Who waits for the pod's end.
    over: Mutex<Option<oneshot::Sender<Report>>>,
}

impl Observer for Teller {
    fn report(&self, report: Report) {
        let mut line = format!("pod/{} {}", report.name.name(), report.phase.as_str());
        if report.is_ready() {
            line.push_str(", ready");
        } else if !report.status.message.is_empty() {
            line.push_str(": ");
            line.push_str(&report.status.message);
        }
        for port in report.status.ports.values() {
            line.push_str(&format!(" http://{}:{port}", report.status.host_ip));
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != line {
            output::note(output::plain(&line));
            *last = line;
        }
        if matches!(report.phase, PodPhase::Succeeded | PodPhase::Failed) {
            let mut over = self.over.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(over) = over.take() {
                // Nobody waits who was interrupted.
                let _ = over.send(report);
            }
        }
    }

    fn event(&self, event: PodEvent) {
        if event.event_type == EventType::Warning {
            output::note(output::plain(&format!(
                "{}: {}",
                event.reason, event.message
            )));
        }
    }
}
