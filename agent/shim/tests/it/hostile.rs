//! A launchable whose user is hostile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use platctrl_shim_lib::{Phase, User};
use platctrl_test_support::needs;

use crate::rig::{Rig, alive, pid_in, wait_for};

const USER: u32 = 54_321;

/// Whether somebody without rights may change what they see of the file systems.
fn anybody_may_unshare() -> bool {
    let mut unshare = Command::new("setpriv");
    let id = USER.to_string();
    unshare.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    unshare.args(["unshare", "--user", "--map-root-user", "--mount", "true"]);
    unshare.status().is_ok_and(|status| status.success())
}

#[test]
fn a_command_beside_a_launchable_that_replaced_what_it_sees_writes_to_nothing_of_it() {
    if !needs::root() {
        return;
    }
    if !anybody_may_unshare() {
        needs::lacks("user namespaces for everybody");
        return;
    }
    // It puts files that it may not even read in the place of those that root writes to.
    let mut rig = Rig::new(
        "exec unshare --user --map-root-user --mount sh -c '\
         mount --bind $SECRET $GROUP/cgroup.procs && \
         mount -t tmpfs none /proc/sys && \
         echo $$ > $OUT/bound; exec sleep 1000'",
    );
    if !rig.track() {
        return;
    }
    let group = rig.spec.tracking.clone().unwrap();
    let secret = rig.root().join("secret");
    fs::write(&secret, "root's alone").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(rig.out(""), fs::Permissions::from_mode(0o777)).unwrap();
    rig.spec.env.push(("SECRET".into(), secret.clone().into()));
    rig.spec.env.push(("GROUP".into(), group.clone().into()));
    rig.spec.oom_score_adj = 100;
    rig.spec.user = Some(User {
        uid: USER,
        gid: USER,
        groups: vec![],
    });
    let (_client, state) = rig.run();
    let child = state.child.unwrap();
    assert_eq!(pid_in(&rig.out("bound")), child, "it is the launchable");
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", child.pid)).unwrap();
    assert!(
        mounts.contains("/cgroup.procs "),
        "the fault happened: {mounts}"
    );

    let mut command = Command::new(env!("CARGO_BIN_EXE_shim-under-test"));
    command
        .arg("exec")
        .arg(&rig.dir)
        .args(["--", "/bin/sh", "-c"]);
    // What it is and sees: its user, without a way back; the launchable's files; its group.
    let script = "id -u; id -g; grep CapEff /proc/self/status; grep -c cgroup.procs /proc/self/mountinfo; \
                  echo $$ > $OUT/beside; while [ ! -e $OUT/go ]; do sleep 0.01; done";
    let beside = command.arg(script).stdout(std::process::Stdio::piped());
    let beside = beside.spawn().unwrap();
    let process = pid_in(&rig.out("beside"));
    assert_eq!(fs::read_to_string(&secret).unwrap(), "root's alone");
    let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
    assert!(
        members.lines().any(|it| it == process.pid.to_string()),
        "{members}"
    );
    fs::write(rig.out("go"), "").unwrap();
    let said = beside.wait_with_output().unwrap();
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        format!("{USER}\n{USER}\nCapEff:\t0000000000000000\n1\n")
    );
    assert!(alive(child));
    wait_for("it to be gone", || !alive(process));
}

#[test]
fn somebody_else_who_reaches_the_socket_is_not_heard() {
    if !needs::root() {
        return;
    }
    let rig = Rig::new("exec sleep 1000");
    let (mut client, state) = rig.run();
    let socket = rig.dir.join("sock");
    // Were they open to everybody, as they never are.
    for (path, mode) in [(&rig.dir, 0o755), (&socket, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    // A user is a thread's, as far as the kernel is concerned.
    let heard = |user| {
        let ask = || {
            let id = rustix::process::Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            let mut stream = UnixStream::connect(&socket).unwrap();
            let _ = stream.write_all(b"status\n");
            let mut said = [0; 512];
            // Who is not heard finds the connection closed, or reset.
            stream.read(&mut said).unwrap_or(0)
        };
        std::thread::scope(|scope| scope.spawn(ask).join().unwrap())
    };
    assert_eq!(heard(USER), 0);
    assert!(heard(0) > 0, "the rest of it is right");
    let now = client.status().unwrap();
    assert_eq!((now.phase, now.child), (Phase::Running, state.child));
}
