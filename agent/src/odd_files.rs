//! What is in the place of a file of ours: links, pipes, devices, directories, and too much. Tests
//! alone; what is tested is in `files`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::files::{self, Access};

fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

#[test]
fn a_link_in_the_place_of_a_file_is_not_read_and_nothing_that_is_no_small_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("file"), "12345").unwrap();
    assert_eq!(files::read(&at("file"), 5).unwrap().unwrap(), b"12345");
    assert!(files::read(&at("file"), 4).is_err(), "it is larger");
    symlink("file", at("link")).unwrap();
    assert!(files::read(&at("link"), 100).is_err());
    symlink("none", at("dangling")).unwrap();
    assert!(
        files::read(&at("dangling"), 100).is_err(),
        "it is there, and no file"
    );
    // Opened without waiting for somebody at the other end.
    pipe(&at("pipe"));
    assert!(files::read(&at("pipe"), 100).is_err());
    assert!(files::read(dir.path(), 1 << 20).is_err());
    assert_eq!(files::read(&at("none"), 100).unwrap(), None);
}

#[test]
fn what_lies_where_a_file_is_prepared_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("canary"), "alive").unwrap();
    let write = |text: &str| files::write(&at("file"), text.as_bytes(), Access::mode(0o600), true);
    symlink("canary", at(".file.new")).unwrap();
    assert!(write("bad").is_err());
    assert_eq!(fs::read_to_string(at("canary")).unwrap(), "alive");
    // It is in nobody's way any more.
    write("good").unwrap();
    assert_eq!(fs::read_to_string(at("file")).unwrap(), "good");
    // A link in the place of the file itself is replaced, not written through.
    fs::remove_file(at("file")).unwrap();
    symlink("canary", at("file")).unwrap();
    write("better").unwrap();
    assert!(fs::symlink_metadata(at("file")).unwrap().is_file());
    assert_eq!(fs::read_to_string(at("canary")).unwrap(), "alive");
}
