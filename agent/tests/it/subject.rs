//! An agent without a store in a process of its own: it carries out one order and tells what it
//! sees as lines of JSON, until it is killed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use platctrl_agent::{
    Desired, Host, HostConfig, HostError, Observer, Order, PodEvent, PodName, Report, Worker, hoist,
};

#[derive(Debug)]
struct Printer;

impl Observer for Printer {
    fn report(&self, report: Report) {
        let line = serde_json::json!({
            "phase": report.phase.as_str(),
            "ready": report.is_ready(),
            "generation": report.observed_generation,
            "status": report.status,
        });
        println!("{line}");
    }

    fn event(&self, event: PodEvent) {
        eprintln!("{} {}: {}", event.name, event.reason, event.message);
    }
}

/// `pod DATA_DIR ARTIFACTS ORDER`: carries out the order, `NAMESPACE/NAME DESIRED`, in that file.
/// Without a `DESIRED` nobody knows what is wanted: the store is away.
pub(crate) fn pod(mut args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut path = || PathBuf::from(args.next().unwrap_or_default());
    let (data_dir, artifacts, order) = (path(), path(), path());
    let text = std::fs::read_to_string(order).unwrap();
    let (name, desired) = text.split_once(' ').unwrap();
    let name: PodName = name.parse().unwrap();
    let order = match desired {
        "" => Order::Unknown,
        desired => Order::Want(Box::new(serde_json::from_str::<Desired>(desired).unwrap())),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut config = HostConfig::new(data_dir, "node-under-test");
        config.file_dirs = vec![artifacts];
        config.shim = Some(std::env::current_exe().unwrap());
        // What an agent that was killed was about to start may hold its lock for a moment.
        let host = loop {
            match Host::open(config.clone()) {
                Err(HostError::Artifacts(hoist::Error::Busy { .. })) => std::thread::yield_now(),
                opened => break Arc::new(opened.unwrap()),
            }
        };
        let mut worker = Worker::spawn(host, Arc::new(Printer), name, order);
        worker.finished().await;
    });
    ExitCode::SUCCESS
}
