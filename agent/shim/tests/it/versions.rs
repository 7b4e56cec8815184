//! Shims and agents of different ages: what the first version wrote and said is kept in
//! `tests/fixtures/v1`, word for word, and is never changed. A shim outlives many agents, so each
//! later one has to get along with it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use platctrl_shim_lib::{
    Client, Event, ExitRecord, ExitStatus, Phase, ProcessId, Request, RestartPolicy, Spec, State,
    read_exits, read_spec, read_state,
};

const SPEC: &str = include_str!("../fixtures/v1/spec");
const RUNNING: &str = include_str!("../fixtures/v1/state");
const BACKOFF: &str = include_str!("../fixtures/v1/state-backoff");
const STOPPED: &str = include_str!("../fixtures/v1/state-stopped");
const EXITS: &str = include_str!("../fixtures/v1/exits");

/// The keys that a shim of the first version knows in a spec.
const KEYS: [&str; 24] = [
    "generation",
    "arg",
    "env",
    "cwd",
    "uid",
    "gid",
    "group",
    "rlimit",
    "umask",
    "tracking",
    "cgroup",
    "shim-cgroup",
    "oom-score-adj",
    "no-new-privs",
    "log-dir",
    "log-name",
    "log-max-bytes",
    "log-max-files",
    "restart",
    "backoff-initial-ms",
    "backoff-max-ms",
    "backoff-reset-ms",
    "stop-timeout-ms",
    "end",
];

fn dir_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn the_files_of_a_first_version_shim_are_read_to_the_last_field() {
    let dir = dir_with(&[("spec", SPEC), ("state", BACKOFF), ("exits", EXITS)]);
    let spec = read_spec(dir.path()).unwrap();
    assert_eq!((spec.generation, spec.argv.len(), spec.umask), (7, 2, 0o27));
    assert_eq!(spec.env[1], ("NOTE".into(), "two\nlines".into()));
    let user = spec.user.as_ref().unwrap();
    assert_eq!(
        (user.uid, user.gid, &user.groups[..]),
        (1000, 1001, &[5][..])
    );
    assert_eq!(spec.rlimits.len(), 2);
    assert_eq!(spec.restart.policy, RestartPolicy::OnFailure);
    assert_eq!(spec.stop_timeout, Duration::from_secs(7));
    assert_eq!((spec.log.max_files, spec.log.max_age), (5, None));
    assert!(spec.tracking.is_some() && spec.cgroups.len() == 1 && spec.shim_cgroups.len() == 1);

    let state = read_state(dir.path()).unwrap().unwrap();
    assert_eq!((state.seq, state.phase), (13, Phase::Backoff));
    assert_eq!((state.restarts, state.failures, state.last_exit), (2, 3, 3));
    assert_eq!(state.next_start_boot_ms, Some(101_500));
    let exits = read_exits(dir.path()).unwrap();
    let how: Vec<_> = exits.iter().map(|exit| exit.status.clone()).collect();
    let not_started = ExitStatus::NotStarted {
        errno: 2,
        message: "no such file".into(),
    };
    assert_eq!(
        how,
        [
            ExitStatus::Code(3),
            ExitStatus::Signal {
                signal: 9,
                core: true
            },
            ExitStatus::Unknown,
            not_started
        ]
    );
    assert_eq!(exits[0].uptime(), Duration::from_millis(500));
    assert!(exits[2].requested);
}

#[test]
fn what_a_first_version_shim_has_to_read_it_can() {
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().skip(1);
        lines
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    let mut spec = Spec::decode(SPEC.as_bytes()).unwrap();
    let text = spec.encode().unwrap();
    assert_eq!(text, SPEC, "what it knows is written as it was");
    // What came later is left out where it is not used, and may be ignored where it is: only the
    // log's age so far, which costs nothing but a younger file.
    spec.log.max_age = Some(Duration::from_secs(60));
    let later: Vec<_> = keys(&spec.encode().unwrap())
        .into_iter()
        .filter(|key| !KEYS.contains(&key.as_str()))
        .collect();
    assert_eq!(later, ["log-max-age-ms"]);
}

#[test]
fn what_a_first_version_shim_is_asked_has_not_changed() {
    let timeout = Some(Duration::from_millis(1500));
    let lines: Vec<_> = [
        Request::Status,
        Request::Subscribe { after_exit: 2 },
        Request::Start,
        Request::Stop { timeout },
        Request::Stop { timeout: None },
        Request::Restart { timeout },
        Request::Signal(15),
        Request::Respec,
        Request::Quit,
    ]
    .into_iter()
    .map(Request::encode)
    .collect();
    assert_eq!(
        lines.concat(),
        "status\nsubscribe 2\nstart\nstop 1500\nstop\nrestart 1500\nsignal 15\nrespec\nquit\n"
    );
}

/// A shim of the first version, as far as its words go: it was recorded while its launchable ran.
fn old_shim(dir: &Path) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(dir.join("sock")).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        let mut asked = Vec::new();
        out.write_all(b"platctrl-shim 1\n").unwrap();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let answer = match line.split(' ').next().unwrap() {
                "status" => format!("{RUNNING}ok\n"),
                "subscribe" => {
                    let after: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
                    let after = usize::try_from(after).unwrap_or(usize::MAX);
                    let missed: Vec<_> = EXITS.lines().take(2).skip(after).collect();
                    let missed = missed.join("\n") + "\n";
                    format!("{missed}{RUNNING}ok\n")
                }
                "stop" => {
                    let exit = EXITS.lines().nth(2).unwrap();
                    format!("ok\n{exit}\n{STOPPED}")
                }
                "quit" => "ok\n".to_owned(),
                _ => {
                    "err this\\x20shim\\x20does\\x20not\\x20know\\x20that\\x20request\n".to_owned()
                }
            };
            let ends = line == "quit";
            asked.push(line);
            out.write_all(answer.as_bytes()).unwrap();
            if ends {
                break;
            }
        }
        asked
    })
}

#[test]
fn a_first_version_shim_is_watched_stopped_and_ended_by_todays_agent() {
    let dir = dir_with(&[]);
    let shim = old_shim(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let state: State = client.status().unwrap();
    let process = ProcessId {
        pid: 4711,
        start_ticks: 9950,
    };
    assert_eq!(
        (state.phase, state.child, state.generation),
        (Phase::Running, Some(process), 7)
    );
    client.subscribe(1).unwrap();
    let next = |client: &mut Client| client.next_event(Duration::from_secs(30)).unwrap().unwrap();
    let missed = |event: Event| match event {
        Event::Exit(ExitRecord { seq, .. }) => seq,
        Event::State(state) => panic!("{state:?}"),
    };
    assert_eq!(
        missed(next(&mut client)),
        2,
        "the one end it had not heard of"
    );
    assert!(matches!(next(&mut client), Event::State(_)));
    let timeout = Some(Duration::from_secs(5));
    client.request(Request::Stop { timeout }).unwrap();
    assert_eq!(missed(next(&mut client)), 3);
    let Event::State(stopped) = next(&mut client) else {
        panic!("no state")
    };
    assert!(stopped.phase.at_rest() && stopped.log_dropped == 17);
    assert_eq!(stopped.message, "its output is lost");
    // What it does not know it refuses, and goes on.
    let refused = client.request(Request::Respec).unwrap_err().to_string();
    assert!(refused.contains("does not know"), "{refused}");
    client.request(Request::Quit).unwrap();
    assert_eq!(
        shim.join().unwrap(),
        ["status", "subscribe 1", "stop 5000", "respec", "quit"]
    );
}
