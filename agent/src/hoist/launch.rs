//! What an artifact offers to be started: `bin/launch`, a program, or `bin/launch/`, several.
//!
//! Looked at before anything is installed, so that an artifact that cannot be started is refused
//! with a sentence, not restarted forever.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{self, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Error;

/// How many of a program's first bytes are looked at; the kernel reads as many of a script's.
pub(super) const HEAD: usize = 256;

/// The programs of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Launch {
    /// `bin/launch` is one program.
    File(Program),
    /// `bin/launch/` is a directory; each executable file in it is a program of its own, by name.
    Directory(BTreeMap<String, Program>),
}

/// What kind of program a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum Program {
    /// A native program.
    Elf {
        /// The machine it was built for, as Rust names it (`x86_64`, `aarch64`, …).
        architecture: String,
    },
    /// A script.
    Script {
        /// What its first line says after `#!`.
        interpreter: String,
    },
}

/// A file or directory as found at `bin/launch`, before any judgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Missing,
    File { executable: bool, head: Vec<u8> },
    Directory(BTreeMap<String, Found>),
    Symlink,
    Other,
}

impl Launch {
    /// What the tree under `root` offers.
    pub(super) fn look(root: &OwnedFd) -> Result<Found, Error> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        look_at(root, "bin/launch", flags, true)
    }
}

/// Judges what was found. `host` is the architecture it has to run on, if that matters.
pub(super) fn judge(found: Found, host: Option<&str>) -> Result<Launch, Error> {
    judge_at("bin/launch", found, host)
}

/// Judges what was found at a path of the artifact.
pub(super) fn judge_at(path: &str, found: Found, host: Option<&str>) -> Result<Launch, Error> {
    let needed = match path {
        "bin/launch" => {
            "an artifact needs an executable file bin/launch, or a directory bin/launch/ of executable files"
        }
        _ => {
            "what is started is an executable file of the artifact, or a directory of executable files"
        }
    };
    let invalid = |problem: String| {
        Err(Error::LaunchInvalid {
            problem: format!("{path}{problem}; {needed}"),
        })
    };
    match found {
        Found::Missing => invalid(" is missing".into()),
        Found::Symlink => invalid(" is a symbolic link, or lies beneath one".into()),
        Found::Other => invalid(" is neither a file nor a directory".into()),
        Found::File {
            executable: false, ..
        } => invalid(" is not executable (chmod +x it, and pack again)".into()),
        Found::File { head, .. } => match program(&head, host) {
            Ok(program) => Ok(Launch::File(program)),
            Err(problem) => invalid(format!(" {problem}")),
        },
        Found::Directory(entries) => {
            let mut programs = BTreeMap::new();
            for (name, entry) in entries {
                let quoted = super::escape(name.as_bytes());
                match entry {
                    // A README beside the programs does no harm.
                    Found::File {
                        executable: false, ..
                    } => continue,
                    Found::File { .. } if !is_plain(&name) => {
                        return invalid(format!(
                            "/{quoted} has a name that cannot name a process: use letters, digits, `.`, `_`, `-`"
                        ));
                    }
                    Found::File { head, .. } => match program(&head, host) {
                        Ok(program) => programs.insert(name, program),
                        Err(problem) => return invalid(format!("/{quoted} {problem}")),
                    },
                    _ => return invalid(format!("/{quoted} is not a regular file")),
                };
            }
            if programs.is_empty() {
                return invalid(" is a directory without an executable file".into());
            }
            Ok(Launch::Directory(programs))
        }
    }
}

fn is_plain(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.len() <= 63
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

pub(super) fn look_at(
    root: &OwnedFd,
    path: &str,
    flags: OFlags,
    deep: bool,
) -> Result<Found, Error> {
    let io = |e: Errno| Error::io("look at", path, e);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // With O_PATH | O_NOFOLLOW even NO_SYMLINKS opens a link at the end: as itself.
    let node = match fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(node) => node,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Missing),
        Err(Errno::LOOP) => return Ok(Found::Symlink),
        Err(e) => return Err(io(e)),
    };
    let stat = fs::fstat(&node).map_err(io)?;
    let open = |flags| {
        fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve).map_err(io)
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Ok(Found::Symlink),
        FileType::RegularFile => {
            let file = open(OFlags::RDONLY | OFlags::NONBLOCK)?;
            let mut head = vec![0; HEAD];
            let n = rustix::io::pread(&file, &mut head, 0).map_err(io)?;
            head.truncate(n);
            Ok(Found::File {
                executable: stat.st_mode & 0o111 != 0,
                head,
            })
        }
        FileType::Directory if deep => {
            let directory = open(OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut entries = BTreeMap::new();
            for entry in Dir::read_from(directory.as_fd()).map_err(io)? {
                let entry = entry.map_err(io)?;
                let name = entry.file_name().to_bytes();
                if name == b"." || name == b".." {
                    continue;
                }
                let name = String::from_utf8_lossy(name).into_owned();
                let found = look_at(root, &format!("{path}/{name}"), flags, false)?;
                entries.insert(name, found);
            }
            Ok(Found::Directory(entries))
        }
        _ => Ok(Found::Other),
    }
}

/// What kind of program begins with `head`, or why the kernel would not start it.
fn program(head: &[u8], host: Option<&str>) -> Result<Program, String> {
    if head.is_empty() {
        return Err("is empty".into());
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        let end = line
            .iter()
            .position(|&byte| byte == b'\n')
            .unwrap_or(line.len());
        let line = line[..end].trim_ascii();
        if line.ends_with(b"\r") || head[..end + 2].ends_with(b"\r") {
            return Err("is a script with Windows line ends, which the kernel takes for part of the interpreter's name".into());
        }
        if !line.starts_with(b"/") {
            let line = super::escape(line);
            return Err(format!(
                "is a script whose first line names no interpreter by its full path (`#!{line}`)"
            ));
        }
        return Ok(Program::Script {
            interpreter: super::escape(line),
        });
    }
    if !head.starts_with(b"\x7fELF") {
        return Err("is neither a native program (ELF) nor a script that begins with `#!`".into());
    }
    if head.len() < 20 {
        return Err("is a native program (ELF) that is cut short".into());
    }
    let bytes = [head[18], head[19]];
    let machine = match head[5] {
        1 => u16::from_le_bytes(bytes),
        2 => u16::from_be_bytes(bytes),
        _ => return Err("is a native program (ELF) of unknown byte order".into()),
    };
    let architecture = match machine {
        3 => "x86".to_owned(),
        8 => "mips".to_owned(),
        21 => "powerpc64".to_owned(),
        22 => "s390x".to_owned(),
        40 => "arm".to_owned(),
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        258 => "loongarch64".to_owned(),
        other => format!("machine {other}"),
    };
    // A 64-bit kernel usually runs the 32-bit programs of its family; it says so itself if not.
    let runs = |host: &str| {
        host == architecture
            || matches!(
                (host, architecture.as_str()),
                ("x86_64", "x86") | ("aarch64", "arm")
            )
    };
    match host {
        Some(host) if !runs(host) => Err(format!(
            "is a native program for {architecture}, and this machine is {host}; build it for {host}"
        )),
        _ => Ok(Program::Elf { architecture }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(head: &[u8]) -> Found {
        Found::File {
            executable: true,
            head: head.to_vec(),
        }
    }

    fn elf(machine: u16) -> Vec<u8> {
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(18, 0);
        head.extend(machine.to_le_bytes());
        head.resize(64, 0);
        head
    }

    fn problem(found: Found) -> String {
        judge(found, Some("x86_64")).unwrap_err().to_string()
    }

    #[test]
    fn what_the_kernel_would_not_start_is_launch_invalid_with_its_reason() {
        let directory = |entries: &[(&str, Found)]| {
            Found::Directory(
                entries
                    .iter()
                    .map(|(name, found)| ((*name).to_owned(), found.clone()))
                    .collect(),
            )
        };
        for (found, words) in [
            (Found::Missing, "is missing"),
            (Found::Symlink, "symbolic link"),
            (Found::Other, "neither a file"),
            (
                Found::File {
                    executable: false,
                    head: b"#!/bin/sh\n".to_vec(),
                },
                "chmod +x",
            ),
            (file(b""), "is empty"),
            (file(b"echo hello\n"), "neither a native program"),
            (file(b"#!\n"), "no interpreter"),
            (file(b"#!bin/sh\n"), "no interpreter"),
            (file(b"#!/bin/sh\r\n"), "Windows"),
            (file(b"\x7fELF"), "cut short"),
            (file(&elf(183)), "for aarch64, and this machine is x86_64"),
            (directory(&[]), "without an executable"),
            (
                directory(&[("a", Found::Symlink)]),
                "bin/launch/a is not a regular",
            ),
            (
                directory(&[("a b", file(b"#!/bin/sh\n"))]),
                "/a b has a name",
            ),
            (directory(&[("a", file(b""))]), "/a is empty"),
        ] {
            let problem = problem(found.clone());
            assert!(problem.contains(words), "{found:?}: {problem}");
        }
    }

    #[test]
    fn programs_are_told_apart() {
        let x86_64 = Program::Elf {
            architecture: "x86_64".into(),
        };
        let sh = Program::Script {
            interpreter: "/bin/sh -e".into(),
        };
        assert_eq!(
            judge(file(&elf(62)), Some("x86_64")).unwrap(),
            Launch::File(x86_64.clone())
        );
        let directory = Found::Directory(BTreeMap::from([
            ("web".to_owned(), file(&elf(62))),
            ("worker".to_owned(), file(b"#! /bin/sh -e\n")),
            (
                "README".to_owned(),
                Found::File {
                    executable: false,
                    head: Vec::new(),
                },
            ),
        ]));
        assert_eq!(
            judge(directory, Some("x86_64")).unwrap(),
            Launch::Directory(BTreeMap::from([
                ("web".into(), x86_64),
                ("worker".into(), sh)
            ]))
        );
        assert!(
            judge(file(&elf(183)), None).is_ok(),
            "any machine's when none is asked for"
        );
    }
}
