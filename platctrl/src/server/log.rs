//! Logs of the pods on this machine, as the shims wrote them.
//!
//! `<data-dir>/pods/<pod>/log/<program>.log` is the newest file, `.log.1` the one before, and so
//! on. Files are opened without following links and must be regular. The log of a program is one
//! stream over all its restarts, and its lines carry no time, so `previous` shows the same, and
//! `sinceSeconds` leaves out whole files.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use platctrl_agent::PodName;
use platctrl_framework::model::Joined;
use rustix::fs::{Mode, OFlags, openat};
use tokio::sync::mpsc;

use super::App;
use super::request::{Query, shown};
use super::status::{Failure, Result, warn};

/// Bytes that are read at once.
const READ: usize = 64 * 1024;
/// Pieces that wait for the client.
const BACKLOG: usize = 2;
/// How often a followed log is looked at.
const TICK: Duration = Duration::from_millis(200);
/// More files than this are never kept.
const MAX_FILES: u32 = 1000;

/// What a client asks for.
#[derive(Clone, Debug)]
struct Asked {
    tail: Option<u64>,
    since: Option<SystemTime>,
    follow: bool,
}

/// `GET …/pods/<name>/log`.
pub(super) async fn answer(app: &Arc<App>, pod: &Joined, query: &Query) -> Result<Response> {
    let node = pod.key.node().unwrap_or_default();
    let (namespace, name) = (pod.key.namespace().unwrap_or_default(), pod.key.name());
    if app.config.node.as_deref() != Some(node) {
        return Err(Failure::bad_request(format!(
            "pod \"{name}\" is on node {node}, and this server reads the logs of its own machine only: run `platctrl logs pod/{name} -n {namespace}` there"
        )));
    }
    let previous = query.flag("previous")?;
    let since = query.number("sinceSeconds")?.map(Duration::from_secs);
    let asked = Asked {
        tail: query.number("tailLines")?,
        since: since.and_then(|since| SystemTime::now().checked_sub(since)),
        follow: query.flag("follow")? && !previous,
    };
    let permit = asked
        .follow
        .then(|| app.follows.clone().try_acquire_owned())
        .transpose();
    let permit = permit.map_err(|_| {
        Failure::too_many("this server follows as many logs as it can: end some of them")
    })?;
    let pod_name =
        PodName::new(namespace, name).map_err(|error| Failure::bad_request(error.to_string()))?;
    let launchable = query
        .get("launchable")
        .or_else(|| query.get("container"))
        .map(ToOwned::to_owned);
    let (data_dir, directory) = (app.config.data_dir.clone(), pod_name.directory());
    let phase = pod
        .own_reality()
        .map(|reality| reality.value.status.phase.as_str().to_owned());
    let opened = tokio::task::spawn_blocking(move || {
        open(
            &data_dir,
            &directory,
            launchable.as_deref(),
            phase.as_deref(),
        )
    });
    let (log, parts) = opened
        .await
        .map_err(|error| Failure::internal(error.to_string()))??;
    let (sender, pieces) = mpsc::channel(BACKLOG);
    let stopping = app.stopping.clone();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let end = || stopping.is_cancelled() || sender.is_closed();
        if let Err(error) = log.send(parts, &asked, &end, &|piece| {
            sender.blocking_send(Ok(piece)).is_ok()
        }) {
            let _ = sender.blocking_send(Err(error));
        }
    });
    let pieces = futures::stream::unfold(pieces, |mut pieces| async move {
        let piece: io::Result<Bytes> = pieces.recv().await?;
        Some((piece, pieces))
    });
    let mut response = Response::new(Body::from_stream(pieces));
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    if previous {
        warn(
            &mut response,
            "a log is one stream over all restarts: this is all that is kept",
        );
    }
    Ok(response)
}

/// A program's log.
#[derive(Debug)]
struct Log {
    directory: OwnedFd,
    program: String,
}

/// One of its files.
#[derive(Debug)]
struct Part {
    file: File,
    inode: u64,
}

fn directory(parent: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Finds the log that is meant, and opens its files.
fn open(
    data_dir: &Path,
    pod: &str,
    launchable: Option<&str>,
    phase: Option<&str>,
) -> Result<(Log, Vec<Part>)> {
    let missing = || {
        let phase = phase.filter(|phase| !phase.is_empty()).unwrap_or("Pending");
        Failure::bad_request(format!(
            "the pod has no log yet: its phase is {phase}; `platctrl describe` tells why it has not started"
        ))
    };
    let found = (|| {
        let home = File::open(data_dir.join("pods"))?;
        let home = directory(&home, pod)?;
        directory(&home, "log")
    })();
    let directory = match found {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => {
            return Err(Failure::internal(format!(
                "cannot open the pod's log: {error}"
            )));
        }
    };
    let programs = programs(&directory).map_err(|error| {
        Failure::internal(format!("cannot read the pod's log directory: {error}"))
    })?;
    // As `web`, or `web/a` of a launch directory, which is `web:a` in file names.
    let shown_names = || {
        programs
            .iter()
            .map(|name| name.replace(':', "/"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let program = match launchable {
        Some(wanted) => {
            let wanted = wanted.replace('/', ":");
            programs
                .iter()
                .find(|name| **name == wanted)
                .ok_or_else(|| {
                    if programs.is_empty() {
                        return missing();
                    }
                    Failure::bad_request(format!(
                        "the pod has no log of a launchable `{}`: it has {}",
                        shown(&wanted),
                        shown_names()
                    ))
                })?
        }
        None => match &programs[..] {
            [one] => one,
            [] => return Err(missing()),
            _ => {
                return Err(Failure::bad_request(format!(
                    "the pod has several launchables, choose one with `launchable`: {}",
                    shown_names()
                )));
            }
        },
    };
    let log = Log {
        program: program.clone(),
        directory,
    };
    // Now, while an answer can still say what is wrong.
    let parts = log.parts().map_err(|error| {
        Failure::internal(format!(
            "cannot read the log of {}: {error}",
            shown(&log.program)
        ))
    })?;
    Ok((log, parts))
}

/// The programs that have a log, sorted.
fn programs(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut programs = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.strip_suffix(".log"));
        programs.extend(name.filter(|name| !name.is_empty()).map(ToOwned::to_owned));
        if programs.len() > 1000 {
            break;
        }
    }
    programs.sort_unstable();
    Ok(programs)
}

impl Log {
    /// A file of the log, if it is there and a regular one: 0 is the newest.
    fn part(&self, number: u32) -> io::Result<Option<Part>> {
        let name = match number {
            0 => format!("{}.log", self.program),
            older => format!("{}.log.{older}", self.program),
        };
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("the log is no regular file"));
        }
        let inode = metadata.ino();
        Ok(Some(Part { file, inode }))
    }

    /// All files, oldest first. While they are opened they may move: each is there once.
    fn parts(&self) -> io::Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        for number in 0..MAX_FILES {
            match self.part(number)? {
                Some(part) if parts.iter().any(|known| known.inode == part.inode) => {}
                Some(part) => parts.push(part),
                // The newest is missing for a moment while files are replaced.
                None if number == 0 => {}
                None => break,
            }
        }
        parts.reverse();
        Ok(parts)
    }

    fn send(
        &self,
        mut parts: Vec<Part>,
        asked: &Asked,
        end: &dyn Fn() -> bool,
        send: &dyn Fn(Bytes) -> bool,
    ) -> io::Result<()> {
        if let Some(since) = asked.since {
            let newest = parts.last().map(|part| part.inode);
            parts.retain(|part| {
                let written = part
                    .file
                    .metadata()
                    .and_then(|metadata| metadata.modified());
                let recent = written.is_ok_and(|written| written >= since);
                recent || asked.follow && Some(part.inode) == newest
            });
        }
        let mut at = match asked.tail {
            Some(lines) => tail(&mut parts, lines)?,
            None => 0,
        };
        let mut last = None;
        for part in parts {
            if !copy(&part, &mut at, end, send)? {
                return Ok(());
            }
            last = Some((part, at));
            at = 0;
        }
        if asked.follow {
            self.follow(last, end, send)?;
        }
        Ok(())
    }

    /// Goes on with what is written, from file to file, until the client or the log is gone.
    fn follow(
        &self,
        mut current: Option<(Part, u64)>,
        end: &dyn Fn() -> bool,
        send: &dyn Fn(Bytes) -> bool,
    ) -> io::Result<()> {
        while !end() {
            if rustix::fs::fstat(&self.directory)?.st_nlink == 0 {
                return Ok(());
            }
            if let Some((part, at)) = &mut current {
                // Emptied, because it could not be replaced.
                if part.file.metadata()?.len() < *at {
                    *at = 0;
                }
                if !copy(part, at, end, send)? {
                    return Ok(());
                }
            }
            let newest = self.part(0)?;
            let same = match (&newest, &current) {
                (Some(newest), Some((part, _))) => newest.inode == part.inode,
                (newest, _) => newest.is_none(),
            };
            if same {
                std::thread::sleep(TICK);
                continue;
            }
            // Replaced: what was written to it before that, then the files that came after it.
            let known = current.as_ref().map(|(part, _)| part.inode);
            if let Some((part, at)) = &mut current
                && !copy(part, at, end, send)?
            {
                return Ok(());
            }
            let parts = self.parts()?;
            let behind = parts.iter().position(|part| Some(part.inode) == known);
            let begin = behind.map_or(0, |position| position + 1);
            for part in parts.into_iter().skip(begin) {
                let mut at = 0;
                if !copy(&part, &mut at, end, send)? {
                    return Ok(());
                }
                current = Some((part, at));
            }
        }
        Ok(())
    }
}

/// Sends a file from a place to its present end; false when nobody wants it any more.
fn copy(
    part: &Part,
    at: &mut u64,
    end: &dyn Fn() -> bool,
    send: &dyn Fn(Bytes) -> bool,
) -> io::Result<bool> {
    loop {
        if end() {
            return Ok(false);
        }
        let mut buffer = vec![0; READ];
        let read = match part.file.read_at(&mut buffer, *at) {
            Ok(0) => return Ok(true),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        buffer.truncate(read);
        *at += read as u64;
        if !send(buffer.into()) {
            return Ok(false);
        }
    }
}

/// Leaves the last files that hold so many lines, and tells where in the first of them to begin.
fn tail(parts: &mut Vec<Part>, lines: u64) -> io::Result<u64> {
    if lines == 0 {
        let last = parts.pop();
        parts.clear();
        let at = last
            .as_ref()
            .map_or(Ok(0), |part| part.file.metadata().map(|it| it.len()))?;
        parts.extend(last);
        return Ok(at);
    }
    let mut wanted = lines;
    let mut buffer = vec![0; READ];
    // A line break at the very end ends the last line and begins none.
    let mut at_end = true;
    for index in (0..parts.len()).rev() {
        let mut end = parts[index].file.metadata()?.len();
        while end > 0 {
            let begin = end.saturating_sub(READ as u64);
            let length = usize::try_from(end - begin).unwrap_or(READ);
            parts[index]
                .file
                .read_exact_at(&mut buffer[..length], begin)?;
            for position in (0..length).rev() {
                let is_break = buffer[position] == b'\n';
                if is_break && !at_end {
                    wanted -= 1;
                    if wanted == 0 {
                        parts.drain(..index);
                        return Ok(begin + position as u64 + 1);
                    }
                }
                at_end = false;
            }
            end = begin;
        }
    }
    Ok(0)
}
