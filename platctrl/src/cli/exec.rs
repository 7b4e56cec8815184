//! `exec`: a command beside a pod's program, wherever the pod is.
//!
//! A pod of this machine needs no server: the command runs on this terminal. For any other the
//! server asks the pod's node, and the command's streams come here.

use std::ffi::OsString;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use rustix::termios::{OptionalActions, Termios};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::codec::{FramedRead, FramedWrite};

use super::{NamespaceFlag, Setting, find, here};
use crate::api::{Collection, Query};
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::server::node::frames::{Frame, Frames, Size};
use crate::server::reach::COMMAND;

/// Bytes of standard input that are read at once.
const READ: usize = 32 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct ExecArgs {
    /// The pod: pod/NAME or NAME; the beginning of a name will do
    #[arg(value_name = "pod/NAME")]
    pub(super) pod: String,
    #[command(flatten)]
    pub(super) namespace: NamespaceFlag,
    /// Beside this program, when the pod has several: web, or web/a
    #[arg(long, value_name = "NAME")]
    pub(super) launchable: Option<String>,
    /// Pass standard input on to the command
    #[arg(short = 'i', long)]
    pub(super) stdin: bool,
    /// Give the command a terminal: this one
    #[arg(short = 't', long)]
    pub(super) tty: bool,
    /// The command and its arguments, behind --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

pub(crate) fn run(args: &ExecArgs, setting: &Setting) -> Result<()> {
    // Whoever names a server means its pods.
    if setting.given_server().is_none() {
        let data_dir = here::data_dir(setting)?;
        let namespace = &args.namespace.namespace;
        if let Some(pod) = here::exactly(&data_dir, &args.pod, namespace) {
            return here::exec(&data_dir, &pod, args);
        }
        // The beginning of a name may be that of a pod elsewhere, too: a server knows.
        if !is_served(setting) {
            let pod = here::find(&data_dir, &args.pod, namespace)?;
            return here::exec(&data_dir, &pod, args);
        }
    }
    super::client(there(args, setting))
}

/// Whether a server answers.
fn is_served(setting: &Setting) -> bool {
    let asked = async { setting.api()?.get("/version").await.map(drop) };
    super::client(asked).is_ok()
}

async fn there(args: &ExecArgs, setting: &Setting) -> Result<()> {
    let terminal = match args.tty {
        true => Some(Raw::terminal()?),
        false => None,
    };
    let (api, catalog) = setting.connect().await?;
    let word = match args.pod.contains('/') {
        true => args.pod.clone(),
        false => format!("pod/{}", args.pod),
    };
    let target = catalog.target(&[word])?;
    if target.kind.kind != "Pod" {
        let message = format!("{} has no programs: pods do", target.title());
        return Err(Failure::usage(message));
    }
    let namespace = &args.namespace.namespace;
    let pod = find::by_beginning(&api, &target, namespace).await?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let mut query = Query::default();
    for word in &args.command {
        let word = word.to_str().ok_or_else(|| {
            Failure::usage("a word of the command is no text in UTF-8, which none can be on its way to another machine")
        })?;
        query = query.with("command", word);
    }
    if args.stdin {
        query = query.with("stdin", "true");
    }
    if let Some(launchable) = &args.launchable {
        query = query.with("launchable", launchable);
    }
    if let Some(size) = terminal {
        query = query
            .with("tty", "true")
            .with("columns", &size.columns.to_string())
            .with("rows", &size.rows.to_string());
        if let Ok(term) = std::env::var("TERM") {
            query = query.with("term", &term);
        }
    }
    let path = query.on(&Collection::new(&target.kind, Some(namespace)).part(name, "exec"));
    let stream = api.turn(&path, COMMAND).await;
    let stream = stream.map_err(find::one_of_several)?;
    let code = {
        let _raw = terminal.map(|_| Raw::enter()).transpose()?;
        attend(stream, args.stdin, terminal.is_some()).await?
    };
    match code {
        0 => Ok(()),
        // The command said itself what there was to say.
        code => Err(Failure::silent(code)),
    }
}

/// Passes streams to and fro until the command has ended; its exit code.
async fn attend(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    input: bool,
    sizes: bool,
) -> Result<u8> {
    let (read, write) = tokio::io::split(stream);
    let mut said = FramedRead::new(read, Frames);
    // Kept open to the end: a server takes its end for this process's.
    let write = FramedWrite::new(write, Frames);
    let feeding = feed(write, input, sizes);
    tokio::pin!(feeding);
    loop {
        let frame = tokio::select! {
            frame = said.next() => frame,
            never = &mut feeding => match never {},
        };
        match frame {
            Some(Ok(Frame::Output(bytes))) => output::print_bytes(&bytes)?,
            Some(Ok(Frame::Errors(bytes))) => {
                // There is nowhere to complain when that fails.
                let _ = std::io::stderr().lock().write_all(&bytes);
            }
            Some(Ok(Frame::Ended(ended))) => return Ok(ended.code),
            Some(Ok(Frame::Input(_) | Frame::Size(_))) => {}
            Some(Err(error)) => return Err(broke_off(&error)),
            None => return Err(broke_off(&"nothing more came")),
        }
    }
}

fn broke_off(why: &dyn std::fmt::Display) -> Failure {
    let message = format!("the stream broke off, and how the command ended is not known: {why}");
    Failure::new(Code::Unreachable, message)
        .hint("the node ends a command that nobody attends any more")
}

/// Sends what is typed, and how large the terminal is. Never completes.
async fn feed<W: AsyncWrite + Unpin>(
    mut write: FramedWrite<W, Frames>,
    input: bool,
    sizes: bool,
) -> std::convert::Infallible {
    let mut stdin = input.then(typed);
    let mut resized = sizes
        .then(|| signal(SignalKind::window_change()).ok())
        .flatten();
    loop {
        let reading = async {
            match &mut stdin {
                Some(stdin) => stdin.recv().await.unwrap_or_default(),
                None => std::future::pending().await,
            }
        };
        let resizing = async {
            match &mut resized {
                Some(resized) => resized.recv().await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            read = reading => {
                if read.is_empty() {
                    stdin = None;
                }
                Frame::Input(read)
            }
            _ = resizing => match size(rustix::stdio::stdout()) {
                Some(size) => Frame::Size(size),
                None => continue,
            },
        };
        if write.send(frame).await.is_err() {
            // What the command still says is worth more than this.
            std::future::pending::<()>().await;
        }
    }
}

/// Standard input as it comes. It is read on a thread of its own, which nobody waits for.
fn typed() -> mpsc::Receiver<Bytes> {
    let (sender, typed) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ];
        loop {
            let read = match std::io::stdin().lock().read(&mut buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                read => read.unwrap_or_default(),
            };
            let piece = Bytes::copy_from_slice(&buffer[..read]);
            if read == 0 || sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    typed
}

fn size(of: BorrowedFd<'_>) -> Option<Size> {
    let size = rustix::termios::tcgetwinsize(of).ok()?;
    Some(Size {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// A terminal that passes on every key, until this goes.
struct Raw(Termios);

impl Raw {
    /// The size of the terminal that this is.
    fn terminal() -> Result<Size> {
        let none = || {
            Failure::usage("there is no terminal here to give to the command")
                .hint("leave out -t, or run this on a terminal")
        };
        if !std::io::stdin().is_terminal() {
            return Err(none());
        }
        size(rustix::stdio::stdout()).ok_or_else(none)
    }

    fn enter() -> Result<Self> {
        let failed = |error| Failure::failed(format!("the terminal cannot be used: {error}"));
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)
            .map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.0);
    }
}
