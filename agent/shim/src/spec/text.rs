//! The `spec` file.
//!
//! One `key value` per line, values escaped; lists are repeated keys. The first line names the
//! format, the last carries a checksum, so half a file is never taken for a whole one. A reader
//! ignores keys it does not know, except those that start with `!`: a writer marks with it what
//! must not be ignored (a new restriction, say), and an older shim then refuses the spec.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Resource, RestartPolicy, Rlimit, Spec, SpecError, User, invalid};
use crate::codec;

const HEADER: &str = "platctrl-shim-spec 1";
/// More than the kernel accepts as arguments and environment together.
const MAX_BYTES: u64 = 8 << 20;

impl Spec {
    /// The text of the `spec` file.
    ///
    /// # Errors
    /// When [`Spec::validate`] refuses it.
    pub fn encode(&self) -> Result<String, SpecError> {
        self.validate()?;
        let mut out = Lines(format!("{HEADER}\n"));
        out.number("generation", self.generation);
        for arg in &self.argv {
            out.text("arg", arg.as_bytes());
        }
        for (key, value) in &self.env {
            out.text("env", &[key.as_bytes(), b"=", value.as_bytes()].concat());
        }
        out.text("cwd", self.cwd.as_os_str().as_bytes());
        if let Some(user) = &self.user {
            out.number("uid", user.uid);
            out.number("gid", user.gid);
            for group in &user.groups {
                out.number("group", *group);
            }
        }
        for limit in &self.rlimits {
            let Rlimit {
                resource,
                soft,
                hard,
            } = limit;
            out.text(
                "rlimit",
                format!("{}:{soft}:{hard}", resource.name()).as_bytes(),
            );
        }
        out.text("umask", format!("{:o}", self.umask).as_bytes());
        for (key, paths) in [
            ("tracking", self.tracking.as_slice()),
            ("cgroup", &self.cgroups),
            ("shim-cgroup", &self.shim_cgroups),
        ] {
            for path in paths {
                out.text(key, path.as_os_str().as_bytes());
            }
        }
        out.text("oom-score-adj", self.oom_score_adj.to_string().as_bytes());
        out.number("no-new-privs", u8::from(self.no_new_privs));
        if let Some(tmp) = &self.private_tmp {
            out.text("!private-tmp", tmp.as_os_str().as_bytes());
        }
        out.text("log-dir", self.log.dir.as_os_str().as_bytes());
        out.text("log-name", self.log.name.as_bytes());
        out.number("log-max-bytes", self.log.max_bytes);
        out.number("log-max-files", self.log.max_files);
        if let Some(age) = self.log.max_age {
            out.number("log-max-age-ms", millis(age));
        }
        out.text("restart", self.restart.policy.name().as_bytes());
        out.number("backoff-initial-ms", millis(self.restart.initial));
        out.number("backoff-max-ms", millis(self.restart.max));
        out.number("backoff-reset-ms", millis(self.restart.reset_after));
        out.number("stop-timeout-ms", millis(self.stop_timeout));
        let sum = codec::checksum(out.0.as_bytes());
        let _ = writeln!(out.0, "end {sum:016x}");
        Ok(out.0)
    }

    /// Reads what [`Spec::encode`] wrote, in this or another minor version.
    ///
    /// # Errors
    /// When the text is cut short or damaged, lacks something, or demands something unknown.
    pub fn decode(text: &[u8]) -> Result<Self, SpecError> {
        let text = text
            .strip_suffix(b"\n")
            .ok_or(SpecError::Damaged("no newline at its end"))?;
        let end = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .ok_or(SpecError::Damaged("it has no last line"))?;
        let (body, last) = text.split_at(end + 1);
        let sum = last
            .strip_prefix(b"end ")
            .ok_or(SpecError::Damaged("it is cut short"))?;
        if format!("{:016x}", codec::checksum(body)).as_bytes() != sum {
            return Err(SpecError::Damaged("its checksum does not match"));
        }
        let mut lines = body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        if lines.next() != Some(HEADER.as_bytes()) {
            return Err(SpecError::Damaged("it is of another format or version"));
        }
        let mut spec = Self::new([""; 0], "", "", "");
        spec.rlimits.clear();
        let (mut uid, mut gid, mut groups) = (None, None, Vec::new());
        for line in lines {
            let at = line
                .iter()
                .position(|byte| *byte == b' ')
                .ok_or(SpecError::Damaged("a line has no value"))?;
            let key = std::str::from_utf8(&line[..at])
                .map_err(|_| SpecError::Damaged("a key is not text"))?;
            let value = codec::unescape(&line[at + 1..])
                .ok_or(SpecError::Damaged("a value is not escaped"))?;
            match key {
                "generation" => spec.generation = number(key, &value)?,
                "arg" => spec.argv.push(OsString::from_vec(value)),
                "env" => {
                    let equals = value.iter().position(|byte| *byte == b'=');
                    let at = equals.ok_or_else(|| invalid(key, "has no '='"))?;
                    let (name, rest) = value.split_at(at);
                    spec.env.push((
                        OsStr::from_bytes(name).to_owned(),
                        OsStr::from_bytes(&rest[1..]).to_owned(),
                    ));
                }
                "cwd" => spec.cwd = to_path(value),
                "uid" => uid = Some(number(key, &value)?),
                "gid" => gid = Some(number(key, &value)?),
                "group" => groups.push(number(key, &value)?),
                "rlimit" => spec.rlimits.push(rlimit(&value)?),
                "umask" => {
                    spec.umask = std::str::from_utf8(&value)
                        .ok()
                        .and_then(|text| u32::from_str_radix(text, 8).ok())
                        .ok_or_else(|| invalid(key, "is not an octal number"))?;
                }
                "tracking" => spec.tracking = Some(to_path(value)),
                "cgroup" => spec.cgroups.push(to_path(value)),
                "shim-cgroup" => spec.shim_cgroups.push(to_path(value)),
                "oom-score-adj" => spec.oom_score_adj = number(key, &value)?,
                "no-new-privs" => spec.no_new_privs = number::<u8>(key, &value)? != 0,
                "!private-tmp" => spec.private_tmp = Some(to_path(value)),
                "log-dir" => spec.log.dir = to_path(value),
                "log-name" => {
                    spec.log.name =
                        String::from_utf8(value).map_err(|_| invalid(key, "is not UTF-8"))?;
                }
                "log-max-bytes" => spec.log.max_bytes = number(key, &value)?,
                "log-max-files" => spec.log.max_files = number(key, &value)?,
                "log-max-age-ms" => spec.log.max_age = Some(duration(key, &value)?),
                "restart" => {
                    spec.restart.policy = std::str::from_utf8(&value)
                        .ok()
                        .and_then(RestartPolicy::from_name)
                        .ok_or_else(|| invalid(key, "is not Always, OnFailure or Never"))?;
                }
                "backoff-initial-ms" => spec.restart.initial = duration(key, &value)?,
                "backoff-max-ms" => spec.restart.max = duration(key, &value)?,
                "backoff-reset-ms" => spec.restart.reset_after = duration(key, &value)?,
                "stop-timeout-ms" => spec.stop_timeout = duration(key, &value)?,
                _ if key.starts_with('!') => {
                    return Err(SpecError::Newer {
                        key: key.to_owned(),
                    });
                }
                _ => {}
            }
        }
        spec.user = match (uid, gid) {
            (Some(uid), Some(gid)) => Some(User { uid, gid, groups }),
            (None, None) if groups.is_empty() => None,
            _ => return Err(invalid("user", "must have both uid and gid, or neither")),
        };
        spec.validate()?;
        Ok(spec)
    }
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn number<T: std::str::FromStr>(key: &str, value: &[u8]) -> Result<T, SpecError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(key, "is not a number in range"))
}

fn duration(key: &str, value: &[u8]) -> Result<Duration, SpecError> {
    number(key, value).map(Duration::from_millis)
}

fn rlimit(value: &[u8]) -> Result<Rlimit, SpecError> {
    let wrong = || invalid("rlimit", "is not a known NAME:SOFT:HARD");
    let mut parts = value.split(|byte| *byte == b':');
    let (Some(name), Some(soft), Some(hard), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong());
    };
    Ok(Rlimit {
        resource: Resource::from_name(name).ok_or_else(wrong)?,
        soft: number("rlimit", soft)?,
        hard: number("rlimit", hard)?,
    })
}

struct Lines(String);

impl Lines {
    fn number(&mut self, key: &str, value: impl Into<u64>) {
        let _ = writeln!(self.0, "{key} {}", value.into());
    }

    fn text(&mut self, key: &str, value: &[u8]) {
        let _ = write!(self.0, "{key} ");
        codec::escape(&mut self.0, value);
        self.0.push('\n');
    }
}

/// The file in a shim's directory that says what to run.
pub const SPEC_FILE: &str = "spec";

/// Writes `<dir>/spec` so that a reader sees the old one or the whole new one. Creates `dir` (mode
/// 0700) when it is missing; its parent must exist.
///
/// A power cut leaves the old one, the new one, or neither and no directory: a shim flushes the
/// directory before it starts anything, so what may have run can still be told.
///
/// # Errors
/// When the spec is refused by [`Spec::validate`] or a file operation fails.
pub fn write_spec(dir: &Path, spec: &Spec) -> io::Result<()> {
    let text = spec.encode()?;
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = dir.join(SPEC_FILE);
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)
}

/// Reads `<dir>/spec`.
///
/// # Errors
/// When there is none or it cannot be used.
pub fn read_spec(dir: &Path) -> io::Result<Spec> {
    let mut text = Vec::new();
    fs::File::open(dir.join(SPEC_FILE))?
        .take(MAX_BYTES)
        .read_to_end(&mut text)?;
    Ok(Spec::decode(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Spec {
        let mut spec = Spec::new(["/bin/launch", "a b", ""], "/", "/var/log/x y", "web");
        spec.generation = 7;
        spec.env = vec![
            ("A".into(), "line one\nline two=x\t\\x41".into()),
            ("B".into(), OsString::from_vec(vec![0xff, 0x80, 1])),
            ("EMPTY".into(), "".into()),
        ];
        spec.user = Some(User {
            uid: 1000,
            gid: 1001,
            groups: vec![5, 6],
        });
        spec.rlimits.push(Rlimit {
            resource: Resource::OpenFiles,
            soft: 1024,
            hard: u64::MAX,
        });
        spec.tracking = Some("/sys/fs/cgroup/unified/platctrl/x".into());
        spec.cgroups = vec![
            "/sys/fs/cgroup/memory/x".into(),
            "/sys/fs/cgroup/pids/x".into(),
        ];
        spec.shim_cgroups = vec!["/sys/fs/cgroup/unified/platctrl/shims".into()];
        spec.oom_score_adj = -7;
        spec.private_tmp = Some("/srv/pods/a b/tmp".into());
        spec.restart.policy = RestartPolicy::Never;
        spec.stop_timeout = Duration::from_millis(30_001);
        spec
    }

    /// `text` with its lines changed by `change` and the checksum made right again.
    fn edited(spec: &Spec, change: impl Fn(&mut String)) -> String {
        let text = spec.encode().unwrap();
        let mut body = text[..text.rfind("end ").unwrap()].to_owned();
        change(&mut body);
        let sum = codec::checksum(body.as_bytes());
        format!("{body}end {sum:016x}\n")
    }

    #[test]
    fn a_spec_is_read_back_as_it_was_written() {
        let spec = full();
        assert_eq!(Spec::decode(spec.encode().unwrap().as_bytes()), Ok(spec));
    }

    #[test]
    fn a_spec_that_is_cut_or_damaged_anywhere_is_refused() {
        let text = full().encode().unwrap();
        for at in 0..text.len() {
            assert!(Spec::decode(&text.as_bytes()[..at]).is_err(), "cut at {at}");
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 4;
            assert!(Spec::decode(&bytes).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_unless_they_must_not_be() {
        let spec = full();
        let newer = edited(&spec, |body| body.push_str("shiny yes\n"));
        assert_eq!(Spec::decode(newer.as_bytes()), Ok(spec.clone()));
        let demanding = edited(&spec, |body| body.push_str("!seccomp strict\n"));
        assert_eq!(
            Spec::decode(demanding.as_bytes()),
            Err(SpecError::Newer {
                key: "!seccomp".into()
            })
        );
    }

    #[test]
    fn dangerous_values_are_refused() {
        type Change = fn(&mut Spec);
        let cases: [(&str, Change); 9] = [
            ("argv", |spec| spec.argv.clear()),
            ("argv", |spec| spec.argv[0] = "launch".into()),
            ("argv", |spec| spec.argv[1] = "a\0b".into()),
            ("env", |spec| spec.env[0].0 = "A=B".into()),
            ("user", |spec| spec.user.as_mut().unwrap().uid = u32::MAX),
            ("user", |spec| {
                spec.user.as_mut().unwrap().groups[0] = u32::MAX;
            }),
            ("log-name", |spec| spec.log.name = "../x".into()),
            ("cwd", |spec| spec.cwd = "relative".into()),
            ("cgroup", |spec| spec.tracking = Some("x".into())),
        ];
        for (key, change) in cases {
            let mut spec = full();
            change(&mut spec);
            assert!(
                matches!(spec.encode(), Err(SpecError::Invalid { key: k, .. }) if k == key),
                "{key}"
            );
        }
        for (from, to) in [("uid 1000", "uid 4294968296"), ("uid 1000", "uid -1")] {
            let text = edited(&full(), |body| *body = body.replace(from, to));
            assert!(Spec::decode(text.as_bytes()).is_err(), "{to}");
        }
        let half = edited(&full(), |body| *body = body.replace("gid 1001\n", ""));
        assert!(Spec::decode(half.as_bytes()).is_err());
    }
}
