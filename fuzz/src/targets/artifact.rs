//! Artifacts: as they come, and with a sound compression around hostile content.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use platctrl_agent::hoist::{Error, inspect, verify};

use super::Target;

pub(super) const ARTIFACT: Target = Target {
    name: "artifact",
    run: artifact,
    longest: 16 * 1024,
    words: &["\x1f", "bin/launch", "ustar", "../"],
};

pub(super) const ARCHIVE: Target = Target {
    name: "archive",
    run: archive,
    longest: 16 * 1024,
    words: &[
        "bin/launch",
        "ustar\0",
        "ustar  \0",
        "../",
        "/etc/passwd",
        "././@LongLink",
        "./PaxHeaders/",
        "30 path=",
        "20 linkpath=",
        "GNU.sparse.major",
        "7777777\0",
    ],
};

/// The bytes as they are.
fn artifact(input: &[u8]) {
    judge(input);
}

/// The bytes of a tar file, with the sums of its headers put right, compressed.
fn archive(input: &[u8]) {
    let mut tar = input.to_vec();
    tar.resize(input.len().next_multiple_of(512) + 1024, 0);
    for header in tar.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().copied().map(u32::from).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).expect("memory takes it");
    judge(&gzip.finish().expect("memory takes it"));
}

/// Looking at it and unpacking it agree, and nothing is found outside of where it belongs.
fn judge(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("artifact.tar.gz");
    std::fs::write(&file, bytes).expect("a file");
    let looked = inspect(&file);
    let verified = verify(&file, None);
    match (&looked, &verified) {
        (Ok(summary), Ok(verified)) => {
            assert_eq!(summary.digest, verified.digest);
            assert!(summary.launch_problem.is_none(), "{summary:?}");
        }
        (Ok(summary), Err(error)) => {
            let unfit = matches!(error, Error::LaunchInvalid { .. });
            assert!(unfit, "{error}: {summary:?}");
        }
        (Err(_), Ok(verified)) => panic!("refused, and unpacked as {verified:?}"),
        (Err(looked), Err(verified)) => {
            assert!(!looked.to_string().is_empty() && !verified.to_string().is_empty());
        }
    }
    only(dir.path(), "artifact.tar.gz");
}

fn only(dir: &Path, name: &str) {
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let found = entry.expect("an entry").file_name();
        assert_eq!(found, name, "something was written outside");
    }
}
