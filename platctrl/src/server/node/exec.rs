//! A command beside a program of a pod, whose streams go over one request: frames in its body are
//! the command's input, frames in the answer its output and how it ended.
//!
//! It ends with whoever asked for it: when they are gone it is asked to end, and killed after a
//! while, with all of its process group. What fled from that is in the pod's control group and
//! ends with the pod.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use platctrl_agent::{BesideError, PodName, beside};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::super::request::{Query, shown};
use super::super::status::{Failure, Result};
use super::frames::{Ended, Frame, Frames, Size};
use super::terminal::Terminal;

/// Bytes that are read at once.
const READ: usize = 32 * 1024;
/// Frames that wait for the asker.
const BACKLOG: usize = 4;
/// How long a command may take to end that nobody waits for any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long more output is waited for once the command has ended: others may hold its streams.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Words of a command, and all their bytes.
const WORDS: usize = 1_000;
const BYTES: usize = 100_000;
/// What the number of the signal is added to where a signal ended it.
const SIGNALLED: i32 = 128;

/// What is asked for.
#[derive(Debug)]
struct Wanted {
    launchable: Option<String>,
    command: Vec<OsString>,
    input: bool,
    terminal: Option<Size>,
    /// What the asker's terminal is.
    term: Option<String>,
}

impl Wanted {
    fn of(query: &Query) -> Result<Self> {
        let words: Vec<&str> = query.all("command").collect();
        if words.first().is_none_or(|first| first.is_empty()) {
            return Err(Failure::bad_request("no command is given: `command`"));
        }
        let bytes: usize = words.iter().map(|word| word.len()).sum();
        if words.len() > WORDS || bytes > BYTES {
            return Err(Failure::bad_request(format!(
                "the command is too long: {WORDS} words and {BYTES} bytes at most"
            )));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(Failure::bad_request("the command holds a NUL character"));
        }
        let side = |name| -> Result<u16> {
            let number = query.number(name)?.unwrap_or_default();
            Ok(u16::try_from(number).unwrap_or(u16::MAX))
        };
        let size = Size {
            columns: side("columns")?,
            rows: side("rows")?,
        };
        let named = query.get("launchable").or_else(|| query.get("container"));
        let term = query
            .get("term")
            .filter(|term| term.len() <= 64 && term.bytes().all(|byte| byte.is_ascii_graphic()));
        Ok(Self {
            launchable: named.map(ToOwned::to_owned),
            command: words.into_iter().map(OsString::from).collect(),
            input: query.flag("stdin")?,
            terminal: query.flag("tty")?.then_some(size),
            term: term.map(ToOwned::to_owned),
        })
    }
}

/// Begins a command, and answers with what it says. `permit` is kept until it has ended.
pub(super) async fn answer(
    data_dir: &Path,
    pod: &PodName,
    query: &Query,
    body: Body,
    stopping: CancellationToken,
    permit: impl Send + 'static,
) -> Result<Response> {
    let wanted = Wanted::of(query)?;
    let (data_dir, pod) = (data_dir.to_owned(), pod.clone());
    let found = tokio::task::spawn_blocking(move || {
        let found = beside(
            &data_dir,
            &pod,
            wanted.launchable.as_deref(),
            &wanted.command,
        );
        (found, wanted)
    });
    let (found, wanted) = found
        .await
        .map_err(|error| Failure::internal(error.to_string()))?;
    let (program, arguments) = found.map_err(|error| refused(&error))?;
    let mut command = Command::new(&program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .kill_on_drop(true);
    let (running, streams) = begin(command, &wanted)
        .map_err(|error| Failure::internal(format!("the command cannot be started: {error}")))?;
    let (sender, said) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let _permit = permit;
        running.attend(streams, body, sender, stopping).await;
    });
    let said = futures::stream::unfold(said, |mut said| async move {
        let frame: Bytes = said.recv().await?;
        Some((io::Result::Ok(frame), said))
    });
    Ok(Response::new(Body::from_stream(said)))
}

fn refused(error: &BesideError) -> Failure {
    let text = error.to_string();
    match error {
        BesideError::NoPod { .. } => Failure::not_found(text),
        BesideError::Several { .. } => Failure::ambiguous(text, "launchable"),
        BesideError::NoProgram { .. } => Failure::bad_request(text),
        _ => Failure::internal(text),
    }
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// The ends of a command's streams that are ours.
struct Streams {
    input: Option<Writer>,
    output: Option<Reader>,
    errors: Option<Reader>,
}

/// A command that was begun, and its process group, which is killed with this.
struct Running {
    child: Child,
    group: Option<Pid>,
    terminal: Option<Terminal>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

fn begin(mut command: Command, wanted: &Wanted) -> io::Result<(Running, Streams)> {
    let terminal = match wanted.terminal {
        Some(size) => {
            let term = wanted.term.as_deref().unwrap_or("dumb");
            command.env("TERM", term);
            Some(Terminal::of(&mut command, size)?)
        }
        None => {
            let input = match wanted.input {
                true => Stdio::piped(),
                false => Stdio::null(),
            };
            command
                .stdin(input)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .process_group(0);
            None
        }
    };
    let mut child = command.spawn()?;
    // Its copies of the terminal's other end go, so that the end of it is seen.
    drop(command);
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let streams = match &terminal {
        Some(terminal) => Streams {
            input: wanted.input.then(|| Box::new(terminal.clone()) as Writer),
            output: Some(Box::new(terminal.clone())),
            errors: None,
        },
        None => Streams {
            input: child.stdin.take().map(|it| Box::new(it) as Writer),
            output: child.stdout.take().map(|it| Box::new(it) as Reader),
            errors: child.stderr.take().map(|it| Box::new(it) as Reader),
        },
    };
    let running = Running {
        child,
        group,
        terminal,
    };
    Ok((running, streams))
}

impl Running {
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // One that has ended is nobody's group.
            let _ = kill_process_group(group, signal);
        }
    }

    async fn attend(
        mut self,
        streams: Streams,
        body: Body,
        sender: mpsc::Sender<Bytes>,
        stopping: CancellationToken,
    ) {
        let ended = CancellationToken::new();
        let pumps = [
            (streams.output, Frame::Output as fn(Bytes) -> Frame),
            (streams.errors, Frame::Errors),
        ];
        let pumps: Vec<_> = pumps
            .into_iter()
            .filter_map(|(stream, frame)| {
                let (sender, ended) = (sender.clone(), ended.clone());
                stream.map(|stream| tokio::spawn(pump(stream, frame, sender, ended)))
            })
            .collect();
        // Askers keep their side open until the end: this completes when they are gone.
        let mut input = std::pin::pin!(feed(body, streams.input, self.terminal.clone()));
        let status = tokio::select! {
            status = self.child.wait() => status,
            () = &mut input => self.end().await,
            () = sender.closed() => self.end().await,
            () = stopping.cancelled() => self.end().await,
        };
        // It was waited for, so that its number may be another's from now on.
        self.group = None;
        ended.cancel();
        for pump in pumps {
            let _ = pump.await;
        }
        match status {
            Ok(status) => {
                let frame = Frame::Ended(Ended { code: code(status) });
                let _ = sender.send(frame.encode()).await;
            }
            Err(error) => tracing::warn!(%error, "how a command ended is not known"),
        }
    }

    /// Ends what nobody waits for any more.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::HUP);
        self.signal(Signal::TERM);
        if let Ok(status) = tokio::time::timeout(PATIENCE, self.child.wait()).await {
            return status;
        }
        self.signal(Signal::KILL);
        self.child.wait().await
    }
}

fn code(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| SIGNALLED + signal);
    let code = status.code().or(signal).unwrap_or(SIGNALLED);
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Sends what comes, no faster than it is taken.
async fn pump(
    mut stream: Reader,
    frame: fn(Bytes) -> Frame,
    sender: mpsc::Sender<Bytes>,
    ended: CancellationToken,
) {
    loop {
        let mut piece = vec![0; READ];
        let read = tokio::select! {
            biased;
            read = stream.read(&mut piece) => read,
            () = silence(&ended) => return,
        };
        let read = read.unwrap_or_default();
        piece.truncate(read);
        if read == 0 || sender.send(frame(piece.into()).encode()).await.is_err() {
            return;
        }
    }
}

/// Completes when nothing more is to be expected of a command.
async fn silence(ended: &CancellationToken) {
    ended.cancelled().await;
    tokio::time::sleep(LAST_WORDS).await;
}

/// Gives a command what comes for it. Completes when nothing comes any more.
async fn feed(body: Body, mut input: Option<Writer>, terminal: Option<Terminal>) {
    let bytes = body.into_data_stream().map_err(io::Error::other);
    let mut frames = FramedRead::new(StreamReader::new(bytes), Frames);
    while let Some(frame) = frames.next().await {
        match frame {
            Ok(Frame::Input(bytes)) if bytes.is_empty() => input = None,
            Ok(Frame::Input(bytes)) => {
                if let Some(writer) = &mut input
                    && writer.write_all(&bytes).await.is_err()
                {
                    // It reads no more, and goes on.
                    input = None;
                }
            }
            Ok(Frame::Size(size)) => {
                if let Some(terminal) = &terminal {
                    let _ = terminal.resize(size);
                }
            }
            Ok(other) => {
                let frame = shown(&format!("{other:?}"));
                return tracing::debug!(frame, "an asker says what only nodes say");
            }
            Err(error) => return tracing::debug!(%error, "the asker of a command broke off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(query: &str) -> Result<Wanted> {
        Wanted::of(&Query::parse(Some(query)).unwrap())
    }

    #[test]
    fn a_command_is_taken_word_by_word_and_refused_when_it_is_none() {
        let it = wanted("command=sh&command=-c&command=echo%20a%26b&stdin=true").unwrap();
        assert_eq!(it.command, ["sh", "-c", "echo a&b"]);
        assert!(it.input && it.terminal.is_none());
        let it = wanted("command=sh&command=&tty=1&columns=80&rows=99999&term=x%0a").unwrap();
        assert_eq!(it.command, ["sh", ""]);
        let size = Size {
            columns: 80,
            rows: u16::MAX,
        };
        assert_eq!((it.terminal, it.term), (Some(size), None));
        for wrong in ["", "command=", "command=a%00b", "command=a&tty=maybe"] {
            wanted(wrong).unwrap_err();
        }
        let long = format!("command=a{}", "&command=b".repeat(WORDS));
        wanted(&long).unwrap_err();
    }

    /// Runs a shell's words with this input, as an asker who reads everything.
    async fn run(script: &str, query: &str, input: Vec<Frame>) -> Vec<Frame> {
        let (running, streams) = shell(script, query);
        let (sender, mut said) = mpsc::channel(BACKLOG);
        let input = futures::stream::iter(input.into_iter().map(|it| io::Result::Ok(it.encode())));
        // The asker waits for the end, and says nothing more.
        let body = Body::from_stream(input.chain(futures::stream::pending()));
        tokio::spawn(running.attend(streams, body, sender, CancellationToken::new()));
        let (mut bytes, mut frames) = (bytes::BytesMut::new(), Vec::new());
        while let Some(piece) = said.recv().await {
            bytes.extend_from_slice(&piece);
            while let Some(frame) =
                tokio_util::codec::Decoder::decode(&mut Frames, &mut bytes).unwrap()
            {
                frames.push(frame);
            }
        }
        frames
    }

    fn shell(script: &str, query: &str) -> (Running, Streams) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).kill_on_drop(true);
        begin(command, &wanted(&format!("command=x&{query}")).unwrap()).unwrap()
    }

    fn text(frames: &[Frame], errors: bool) -> String {
        let bytes = frames.iter().filter_map(|frame| match frame {
            Frame::Output(bytes) if !errors => Some(bytes.to_vec()),
            Frame::Errors(bytes) if errors => Some(bytes.to_vec()),
            _ => None,
        });
        String::from_utf8(bytes.flatten().collect()).unwrap()
    }

    #[tokio::test]
    async fn output_errors_and_the_exit_code_come_apart() {
        let said = run("echo out; echo err >&2; exit 3", "", Vec::new()).await;
        assert_eq!(
            (text(&said, false), text(&said, true)),
            ("out\n".into(), "err\n".into())
        );
        assert_eq!(said.last(), Some(&Frame::Ended(Ended { code: 3 })));
        let said = run("kill -9 $$", "", Vec::new()).await;
        assert_eq!(said, [Frame::Ended(Ended { code: 137 })]);
    }

    #[tokio::test]
    async fn input_is_given_until_its_end_and_none_where_none_was_asked_for() {
        let input = |text: &'static str| Frame::Input(Bytes::from_static(text.as_bytes()));
        let frames = vec![input("a\n"), input("b\n"), input("")];
        let said = run("cat; echo end", "stdin=1", frames.clone()).await;
        assert_eq!(text(&said, false), "a\nb\nend\n");
        let said = run("cat; echo end", "", frames).await;
        assert_eq!(text(&said, false), "end\n");
        // One that reads nothing.
        let much = vec![Frame::Input(Bytes::from(vec![b'x'; 65_536])); 64];
        let said = run("exec <&-; echo no", "stdin=1", much).await;
        assert_eq!(text(&said, false), "no\n");
        assert_eq!(said.last(), Some(&Frame::Ended(Ended { code: 0 })));
    }

    #[tokio::test]
    async fn a_terminal_is_one_and_has_the_size_that_is_said() {
        let size = Size {
            columns: 132,
            rows: 40,
        };
        let script = "test -t 0 && test -t 1 && test -t 2 && stty size && read line && stty size && echo got $line";
        let frames = vec![
            Frame::Size(size),
            Frame::Input(Bytes::from_static(b"word\n")),
        ];
        let said = run(
            script,
            "tty=1&stdin=1&columns=80&rows=24&term=xterm",
            frames,
        )
        .await;
        let text = text(&said, false);
        assert!(text.contains("40 132"), "{text:?}");
        assert!(text.contains("got word"), "{text:?}");
        assert_eq!(said.last(), Some(&Frame::Ended(Ended { code: 0 })));
    }

    #[tokio::test]
    async fn a_command_ends_with_whoever_asked_for_it() {
        for (trap, query, breaks_off) in [
            // One that does not want to is killed.
            ("trap '' HUP TERM", "", false),
            (":", "", true),
            (":", "tty=1", false),
        ] {
            let script = format!("{trap}; echo ready; while :; do sleep 1; done");
            let (running, mut streams) = shell(&script, query);
            let pid = running.child.id().unwrap();
            let mut first = [0; 5];
            let output = streams.output.as_mut().unwrap();
            output.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"ready");
            let (sender, said) = mpsc::channel(BACKLOG);
            let body = match breaks_off {
                true => Body::from_stream(futures::stream::once(async {
                    Err::<Bytes, _>(io::Error::other("gone"))
                })),
                false => Body::from_stream(futures::stream::pending::<io::Result<Bytes>>()),
            };
            if !breaks_off {
                drop(said);
            }
            running
                .attend(streams, body, sender, CancellationToken::new())
                .await;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            assert!(stat.is_err(), "it is still there: {stat:?}");
        }
    }

    #[tokio::test]
    async fn whoever_keeps_the_streams_holds_up_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!(
            "setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000' & while ! test -e {0}; do :; done; echo done",
            file.display()
        );
        let said = run(&script, "", Vec::new()).await;
        assert_eq!(text(&said, false), "done\n");
        let pid = std::fs::read_to_string(&file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
}
