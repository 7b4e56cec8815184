//! Links, symbolic and hard: what leads out, what is written through, what points at nothing known.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::super::raw::Block;
use super::{accepted, refused, with};
use crate::hoist::Rule::*;

#[test]
fn links_that_lead_out_or_are_written_through_are_refused() {
    refused([
        (
            "write through a link to /tmp",
            with(|raw| raw.symlink("d", "/tmp").file("d/x", b"")),
            SymlinkTarget,
        ),
        (
            "write through ..",
            with(|raw| raw.symlink("d", "..").file("d/x", b"")),
            SymlinkTarget,
        ),
        (
            "write through a link that stays inside",
            with(|raw| raw.symlink("d", "bin").file("d/x", b"")),
            ParentNotDirectory,
        ),
        (
            "write through the canary",
            with(|raw| raw.symlink("d", "../outside").file("d/shadow", b"")),
            SymlinkTarget,
        ),
        (
            "chain to the root",
            with(|raw| {
                raw.symlink("a", "b")
                    .symlink("b", "c")
                    .symlink("c", "/")
                    .file("a/x", b"")
            }),
            SymlinkTarget,
        ),
        (
            "chain of insiders",
            with(|raw| raw.symlink("a", "b").file("a/x", b"")),
            ParentNotDirectory,
        ),
        (
            "absolute target",
            with(|raw| raw.symlink("l", "/etc/passwd")),
            SymlinkTarget,
        ),
        (
            "target above",
            with(|raw| raw.symlink("a/b/l", "../../../x")),
            SymlinkTarget,
        ),
        (
            "target above by way of a directory",
            with(|raw| raw.dir("p/").symlink("p/up", "..").symlink("z", "p/up/..")),
            SymlinkTarget,
        ),
        (
            "target with a late .. that counting levels would allow",
            with(|raw| raw.symlink("a/b/up", "../..").symlink("a/b/z", "up/../x")),
            SymlinkTarget,
        ),
        (
            "target inside by way of ..",
            with(|raw| raw.symlink("l", "bin/../bin")),
            SymlinkTarget,
        ),
        (
            "empty target",
            with(|raw| raw.symlink("l", "")),
            SymlinkTarget,
        ),
        (
            "target with //",
            with(|raw| raw.symlink("l", "a//b")),
            SymlinkTarget,
        ),
        (
            "directory over a link, to chmod its target (CVE-2026-33056)",
            with(|raw| {
                raw.symlink("d", "bin")
                    .block(&Block::new("d/", b'5').mode(0o777))
            }),
            Duplicate,
        ),
        (
            "link over a directory",
            with(|raw| raw.symlink("bin", "x")),
            Duplicate,
        ),
        (
            "link over a file",
            with(|raw| raw.symlink("bin/launch", "x")),
            Duplicate,
        ),
    ]);
    let canary = accepted(
        "links that stay inside",
        &with(|raw| {
            raw.symlink("lib.so", "lib.so.1")
                .symlink("a/b/l", "../../bin/launch")
                .symlink("dot", "./bin/launch")
                .symlink("dir", "bin/")
                .symlink("dangling", "nowhere")
        }),
    );
    let inside = fs::read_to_string(canary.target().join("a/b/l")).unwrap();
    assert_eq!(inside, "#!/bin/sh\n");
}

#[test]
fn hard_links_to_anything_but_an_earlier_file_are_refused() {
    refused([
        (
            "absolute",
            with(|raw| raw.hard_link("h", "/etc/shadow")),
            HardLinkTarget,
        ),
        (
            "above",
            with(|raw| raw.hard_link("h", "../outside/shadow")),
            HardLinkTarget,
        ),
        (
            "to a symbolic link",
            with(|raw| raw.symlink("s", "bin/launch").hard_link("h", "s")),
            HardLinkTarget,
        ),
        (
            "to a directory",
            with(|raw| raw.hard_link("h", "bin")),
            HardLinkTarget,
        ),
        (
            "forward",
            with(|raw| raw.hard_link("h", "f").file("f", b"")),
            HardLinkTarget,
        ),
        (
            "to itself",
            with(|raw| raw.hard_link("h", "h")),
            HardLinkTarget,
        ),
        (
            "to nothing",
            with(|raw| raw.hard_link("h", "")),
            HardLinkTarget,
        ),
        (
            "through a link",
            with(|raw| raw.symlink("d", "bin").hard_link("h", "d/launch")),
            HardLinkTarget,
        ),
        (
            "over a file",
            with(|raw| raw.hard_link("bin/launch", "bin/launch")),
            Duplicate,
        ),
        (
            "with a body",
            with(|raw| {
                raw.block(&Block::new("h", b'1').link("bin/launch").size(1))
                    .body(b"x")
            }),
            SizeConflict,
        ),
    ]);
    let canary = accepted(
        "to a file",
        &with(|raw| raw.hard_link("a/h", "./bin/launch")),
    );
    let inode = |path| fs::metadata(canary.target().join(path)).unwrap().ino();
    assert_eq!(inode("a/h"), inode("bin/launch"));
}
