//! An app that wants more than its own, and artifacts that do: what they reach, what becomes of
//! them, and that nobody else is disturbed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use platctrl_agent::{LogQuery, LogReader};
use platctrl_framework::model::Digest;
use platctrl_test_support::needs;
use serde_json::json;

use crate::faults::shim_of;
use crate::hostile::picture;
use crate::rig::{Rig, eventually, is_alive, kill, name, tombstone, want};

/// Tries one thing a line (the node is below `/tmp`, so that one is not private), and says what it was let do. `own` is what it has to be let do.
const ATTEMPTS: &str = r#"#!/bin/sh
exec 2>/dev/null
try() { what=$1; shift; ( "$@" ) >/dev/null && echo "let $what"; }
put() { echo x >> "$1"; }
try own put "$HOME/x"
try own-tmp put /var/tmp/x
for at in state cache installs secrets shim pods; do try "list $at" ls "$AREA/$at"; done
try 'read the agent' cat "$AREA/state/agent.json"
for at in data tmp log config env; do
  try "list the other's $at" ls "$AREA/pods/default.other/$at"
  try "write the other's $at" put "$AREA/pods/default.other/$at/x"
done
try 'enter the other' cd "$AREA/pods/default.other/data"
try 'end the other' kill -0 "$OTHER"
try 'look into the other' ls "/proc/$OTHER/cwd/"
try 'read the other' cat "/proc/$OTHER/environ"
try 'write its program' put "$LAUNCHABLE_ROOT/bin/launch"
try 'open its program' chmod 777 "$LAUNCHABLE_ROOT/bin/launch"
try 'replace its program' mv "$LAUNCHABLE_ROOT/bin" "$HOME/bin"
try 'write its configuration' put "$CONFIG_PATH"
try 'replace its configuration' mv "$CONFIG_PATH" "$HOME/config"
try 'write its labels' put "$POD_LABELS_PATH"
try 'write its log' put "$POD_HOME/log/web.log"
try 'replace its log' mv "$POD_HOME/log/web.log" "$HOME/log"
try 'write beside' put "$POD_HOME/x"
try 'replace its home' mv "$POD_HOME" "$HOME/home"
for it in "$PPID" "$AGENT" 1; do
  try "end $it" kill -0 "$it"
  try "read $it" cat "/proc/$it/environ"
  try "enter $it" ls "/proc/$it/root/"
  try "see files of $it" ls "/proc/$it/fd/"
  try "write into $it" put "/proc/$it/mem"
  try "save $it" put "/proc/$it/oom_score_adj"
done
try 'become root' setpriv --reuid=0 true
try 'become another' setpriv --reuid=1 true
try 'mount' mount -t tmpfs none /mnt
try 'make a device' mknod "$HOME/null" c 1 3
try 'give away' chown 0 "$HOME/x"
try 'enter the machine' nsenter -t 1 -m true
cut -d: -f2- /proc/self/cgroup | while IFS=: read -r kind group; do
  for base in /sys/fs/cgroup/unified /sys/fs/cgroup "/sys/fs/cgroup/$kind"; do
    at="$base$group"
    [ -e "$at/cgroup.procs" ] || continue
    case "$group" in */platctrl-*) ;; *) continue;; esac
    echo "in a group"
    try "leave $at" put "$at/../cgroup.procs"
    try "join below $at" mkdir "$at/below"
    try "remove $at" rmdir "$at"
    for limit in pids.max memory.max memory.limit_in_bytes cpu.max cgroup.kill; do
      [ -e "$at/$limit" ] && try "write $at/$limit" sh -c "echo max > $at/$limit"
    done
  done
done
grep NoNewPrivs /proc/self/status
echo end
exec sleep 1000
"#;

#[test]
fn an_app_reaches_its_own_and_nothing_of_the_agent_its_shim_or_other_pods() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let host = rig.host();
    let mut other = rig.script("other", "#!/bin/sh\nexec sleep 1000\n");
    other["app"] = format!("{}o", rig.app).into();
    let neighbour = platctrl_agent::PodName::new("default", "other").unwrap();
    let (_other, others) = rig.worker_of(&host, &neighbour, want(1, &other));
    let neighbours = others.ready().status.pids["web"];

    let mut spec = rig.script("attempts", ATTEMPTS);
    spec["launchables"]["web"]["env"] = json!({
        "AREA": rig.data_dir(),
        "OTHER": neighbours.to_string(),
        "AGENT": std::process::id().to_string(),
    });
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let pid = told.ready().status.pids["web"];
    let mut said = rig.said("end");
    let groups = said.iter().filter(|line| *line == "in a group").count();
    if groups == 0 {
        needs::lacks("control groups");
    }
    said.retain(|line| line != "in a group");
    assert_eq!(said, ["let own", "let own-tmp", "NoNewPrivs:\t1"]);
    // Nothing of what it tried did anything, or disturbed anybody.
    assert!(is_alive(pid) && is_alive(neighbours));
    shim_of(&rig, "web");
    assert_eq!(others.ready().status.restarts, 0);
    worker.order(tombstone(1, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(is_alive(neighbours));
}

/// Puts things in its own directories that are meant for whoever walks them as root, and goes on
/// swapping them.
const SWAPS: &str = r#"#!/bin/sh
exec 2>/dev/null
cd "$HOME"
truncate -s 1T sparse; mkfifo fifo; mkdir -m 0 closed
touch "$(printf 'a\033[2J\nb')" './-rf' 'x y'
i=0; while [ $i -lt 300 ]; do true > "many-$i"; i=$((i+1)); done
i=0; mkdir deep; while [ $i -lt 60 ]; do mv deep d; mkdir deep; mv d deep/; i=$((i+1)); done
ln -s "$CANARY" link; ln -s "$CANARY" other
for at in "$HOME" /var/tmp; do
  ( cd "$at"; while :; do
      mkdir swap && true > swap/x; rm -rf swap; ln -s "$CANARY" swap; rm swap
      mkdir -p up/down; mv up/down moved; rm -rf up; ln -s "$CANARY" up; rm -rf up moved
    done ) &
done
( n=0; while :; do echo "turn $((n+=1))" > turns.new; mv turns.new turns; sleep 0.01; done ) &
echo end
wait
"#;

#[test]
fn root_walks_the_directories_of_an_app_that_swaps_them_and_leaves_all_else_alone() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let canary = rig.scratch("canary");
    fs::write(canary.join("large"), "x".repeat(16 << 20)).unwrap();
    fs::write(canary.join("open"), "open").unwrap();
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o777)).unwrap();
    let before = picture(&canary);
    let mut spec = rig.script("swaps", SWAPS);
    spec["launchables"]["web"]["env"] = json!({"CANARY": canary});
    let host = rig.host();
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    rig.said("end");
    let paths = rig.layout().pod(&name());
    let turns = || fs::read_to_string(paths.data().join("turns")).ok();
    let begun = eventually("its first turn", turns);
    let look = || {
        let pods = platctrl_agent::inspect(&rig.data_dir()).unwrap();
        let disk = pods[0].disk;
        assert!(disk.data < 16 << 20, "a link was followed: {disk:?}");
        assert!(disk.data > 0 && !disk.at_least, "{disk:?}");
        let log = LogReader::open(&rig.data_dir(), &name(), LogQuery::default()).unwrap();
        log.copy(&|| false, &|_| true).unwrap();
    };
    for _ in 0..200 {
        look();
    }
    eventually("another turn", || {
        turns().filter(|now| *now != begun).map(drop)
    });
    // A restart, another version and the end, while it goes on.
    kill(first.status.pids["web"]);
    told.wait("another process", |it| {
        it.is_ready() && it.status.pids["web"] != first.status.pids["web"]
    });
    look();
    spec["config"] = json!({"a": 1});
    worker.order(want(2, &spec));
    told.wait("the next version", |it| {
        it.is_ready() && it.observed_generation == 2
    });
    look();
    assert_eq!(picture(&canary), before);
    worker.order(tombstone(2, &spec));
    told.wait("the end", |report| report.phase.as_str() == "Gone");
    assert!(!paths.home().exists());
    assert_eq!(picture(&canary), before);
}

/// Makes an archive with the real tar, in a directory of its own, by this script.
fn archive(rig: &Rig, name: &str, script: &str) -> (String, Digest) {
    let dir = rig.scratch(&format!("pack-{name}"));
    let file = rig.artifacts().join(format!("{name}.tar.gz"));
    let script = format!(
        "set -e; umask 022; mkdir bin; printf '#!/bin/sh\\nexec sleep 1000\\n' > bin/launch; \
         chmod 755 bin/launch; {script}"
    );
    let made = Command::new("bash")
        .args(["-c", &script])
        .env("OUT", &file)
        .env("CANARY", dir.parent().unwrap().join("canary"))
        .current_dir(&dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{name}: {made:?}");
    let digest = Digest::of(fs::read(&file).unwrap());
    (format!("file:{}", file.display()), digest)
}

#[test]
fn a_hostile_artifact_is_refused_in_the_status_and_costs_neither_its_pod_nor_another_anything() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new();
    let canary = rig.scratch("canary");
    fs::create_dir(canary.join("d")).unwrap();
    fs::write(canary.join("file"), "alive").unwrap();
    fs::set_permissions(canary.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = picture(&canary);
    let host = rig.host();
    let mut other = rig.script("other", "#!/bin/sh\nexec sleep 1000\n");
    other["app"] = format!("{}o", rig.app).into();
    let neighbour = platctrl_agent::PodName::new("default", "other").unwrap();
    let (_other, others) = rig.worker_of(&host, &neighbour, want(1, &other));
    let neighbours = others.ready().status.pids["web"];
    let mut spec = rig.script("good", "#!/bin/sh\nexec sleep 1000\n");
    let (worker, told) = rig.worker(&host, want(1, &spec));
    let first = told.ready();
    let pid = first.status.pids["web"];
    let installs = |rig: &Rig| {
        let mut names: Vec<_> = fs::read_dir(rig.data_dir().join("installs"))
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let installed = installs(&rig);
    let mut generation = 1;
    for (what, script, rule) in [
        (
            "absolute",
            "tar -czPf $OUT bin $CANARY/file",
            "AbsolutePath",
        ),
        (
            "above",
            "echo x > x; tar -czPf $OUT --transform 's,^x,../../../canary/x,' bin x",
            "ParentComponent",
        ),
        (
            "through-a-link",
            "ln -s $CANARY l; tar -cf a.tar bin l; rm l; mkdir l; echo x > l/x; tar -rf a.tar l/x; gzip -c a.tar > $OUT",
            "SymlinkTarget",
        ),
        (
            "through-a-link-inside",
            "ln -s bin l; tar -cf a.tar bin l; rm l; mkdir l; echo x > l/x; tar -rf a.tar l/x; gzip -c a.tar > $OUT",
            "ParentNotDirectory",
        ),
        (
            "mode-of-a-link",
            "ln -s bin l; tar -cf a.tar bin l; rm l; mkdir -m 777 l; tar -rf a.tar l; gzip -c a.tar > $OUT",
            "Duplicate",
        ),
        (
            "hard-link",
            "ln $CANARY/file a; ln a b; tar -czPf $OUT --transform \"s,^a\\$,$CANARY/file,\" bin b a",
            "AbsolutePath",
        ),
        ("device", "mknod n c 1 3; tar -czf $OUT bin n", "EntryType"),
        ("pipe", "mkfifo p; tar -czf $OUT bin p", "EntryType"),
        (
            "sparse",
            "truncate -s 1T s; tar --sparse -czf $OUT bin s",
            "Sparse",
        ),
        (
            "attributes",
            "tar --format=pax --pax-option=SCHILY.xattr.security.capability:=y -czf $OUT bin",
            "ExtendedAttributes",
        ),
        (
            "bomb",
            "head -c 300M /dev/zero > z; tar -czf $OUT bin z",
            "CompressionRatio",
        ),
        ("twice", "tar -czf a bin; cat a a > $OUT", "TrailingData"),
        ("cut", "tar -czf a bin; head -c 60 a > $OUT", "CorruptGzip"),
        ("page", "echo '<html>' > $OUT", "NotGzip"),
        ("plain", "tar -cf $OUT bin", "NotGzip"),
    ] {
        let artifact = archive(&rig, what, script);
        generation += 1;
        spec["launchables"]["web"]["location"] = artifact.0.into();
        spec["launchables"]["web"]["digest"] = json!(artifact.1);
        worker.order(want(generation, &spec));
        // What runs is the version before, and the status says which rule was broken.
        let refused = told.wait(what, |it| {
            it.status.reason == "ArtifactRefused" && it.status.message.contains(rule)
        });
        assert_eq!(refused.status.pids["web"], pid, "{what}");
        assert!(refused.observed_generation < generation, "{what}");
        let held = refused.condition("Installed").or(refused.condition("Held"));
        assert!(held.is_some(), "{what}: {refused:?}");
        assert!(is_alive(pid) && is_alive(neighbours), "{what}");
        assert_eq!(picture(&canary), before, "{what}");
        assert_eq!(installs(&rig), installed, "{what}: nothing is left");
    }
    // It goes on as if nothing had been.
    let good = rig.script("better", "#!/bin/sh\nexec sleep 2000\n");
    worker.order(want(generation + 1, &good));
    told.wait("a good one", |it| {
        it.is_ready() && it.observed_generation == generation + 1
    });
    let report = others.ready();
    assert_eq!(
        (report.status.pids["web"], report.status.restarts),
        (neighbours, 0)
    );
}
