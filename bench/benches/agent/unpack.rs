//! An artifact unpacked with all checks and made durable, against `tar xzf && sync`.
//!
//! Ours is measured from the node's cache, as `tar` reads a file that is there; the first
//! time, with the fetch into the cache, is a raw line. Both trees are walked and compared.
//!
//! Both work on a fresh file system in an image of their own (as root; else in the directory for
//! temporary files), and nothing is deleted before the end: for minutes, ext4 searches past the
//! inodes of files deleted nearby whenever it makes one, which costs ten times the unpacking and
//! falls on whoever is unlucky.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use platctrl_agent::hoist::{Config, Digest, Source, Store, build};
use platctrl_bench::{Goal, Result, hash, ratio, raw, runs, same, text};

const DIRECTORIES: usize = 250;
const FILES_EACH: usize = 19;

/// About 5,000 entries and 40 MiB: small files and a few large ones, text and numbers.
fn generate(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("bin"))?;
    fs::write(dir.join("bin/launch"), "#!/bin/sh\nexec sleep 3600\n")?;
    fs::set_permissions(dir.join("bin/launch"), fs::Permissions::from_mode(0o755))?;
    for n in 0..DIRECTORIES {
        let below = dir.join(format!("lib/part-{:02}/module-{n:03}", n % 20));
        fs::create_dir_all(&below)?;
        for file in 0..FILES_EACH {
            let seed = (n * FILES_EACH + file) as u64;
            let size = if seed.is_multiple_of(100) {
                300_000
            } else {
                600 + (seed as usize * 37) % 11_000
            };
            fs::write(below.join(format!("file-{file:02}.txt")), text(seed, size))?;
        }
    }
    Ok(())
}

/// What lies in a tree besides the agent's marker: entries, bytes, and a sum of paths and contents.
fn census(root: &Path) -> Result<(u64, u64, u64)> {
    let (mut entries, mut bytes, mut sum) = (0, 0, 0_u64);
    let mut todo = vec![PathBuf::new()];
    while let Some(below) = todo.pop() {
        for entry in fs::read_dir(root.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            // Only the marker begins with a dot.
            if path.to_string_lossy().starts_with('.') {
                continue;
            }
            entries += 1;
            let name = path.to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                sum = sum.wrapping_add(hash(&[name.as_bytes()]));
                todo.push(path);
            } else {
                let content = fs::read(entry.path())?;
                bytes += content.len() as u64;
                sum = sum.wrapping_add(hash(&[name.as_bytes(), &content]));
            }
        }
    }
    Ok((entries, bytes, sum))
}

fn install(data: &Path, artifact: &Path, digest: &Digest) -> Result<(f64, PathBuf)> {
    let executor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut config = Config::new(data);
    config.allowed_directories = artifact.parent().map(Path::to_owned).into_iter().collect();
    let store = Store::open(config)?;
    let source = Source::File(artifact.to_owned());
    let begun = Instant::now();
    let install = executor.block_on(store.ensure(digest, &source))?;
    Ok((begun.elapsed().as_secs_f64(), install.path))
}

/// Returns the time of both, and of `tar` alone.
fn tar(artifact: &Path, to: &Path) -> Result<(f64, f64)> {
    fs::create_dir(to)?;
    let begun = Instant::now();
    let unpacked = Command::new("tar")
        .arg("xzf")
        .arg(artifact)
        .arg("-C")
        .arg(to)
        .status()?;
    let alone = begun.elapsed().as_secs_f64();
    let synced = unpacked.success() && Command::new("sync").status()?.success();
    let took = begun.elapsed().as_secs_f64();
    if !synced {
        return Err("`tar xzf && sync` failed".into());
    }
    Ok((took, alone))
}

/// An empty ext4 in a sparse image, mounted; gone when dropped.
struct Fresh {
    mounted: bool,
    dir: tempfile::TempDir,
}

impl Fresh {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("platctrl-bench-")
            .tempdir()?;
        let mut fresh = Self {
            mounted: false,
            dir,
        };
        fs::create_dir(fresh.path())?;
        let image = fresh.dir.path().join("image");
        fs::File::create(&image)?.set_len(3 << 30)?;
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&image)
            .status();
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(fresh.path());
        fresh.mounted = made.is_ok_and(|made| made.success())
            && mount.status().is_ok_and(|mounted| mounted.success());
        if !fresh.mounted {
            println!(
                "unpack: no fresh file system here (that needs root, mkfs.ext4 and loop devices): expect noise"
            );
        }
        // The helper's user passes through to the artifact.
        for dir in [fresh.dir.path().to_owned(), fresh.path()] {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
        }
        Ok(fresh)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if self.mounted {
            let unmounted = Command::new("umount").arg(self.path()).status();
            if !unmounted.is_ok_and(|unmounted| unmounted.success()) {
                eprintln!("unpack: {} stays mounted", self.path().display());
            }
        }
    }
}

/// Moves an install out of the way, and waits until the disk is at rest.
fn set_aside(path: &Path, to: &Path) -> Result<()> {
    fs::rename(path, to)?;
    Command::new("sync").status()?;
    Ok(())
}

pub(crate) fn unpack() -> Result<()> {
    let fresh = Fresh::new()?;
    let dir = fresh.path();
    let (tree, artifact) = (dir.join("tree"), dir.join("bench.tar.gz"));
    generate(&tree)?;
    let built = build(&tree, &artifact)?;
    fs::set_permissions(&artifact, fs::Permissions::from_mode(0o644))?;
    let expected = census(&tree)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut fetched, mut alone) = (Vec::new(), Vec::new());
    let data = dir.join("data");
    for run in 0..runs() {
        if run == 0 {
            // Fills the cache.
            let (took, path) = install(&data, &artifact, &built.digest)?;
            fetched.push(took);
            set_aside(&path, &dir.join("first"))?;
        }
        // Whoever comes second finds the disk busier or the caches warmer: each in turn.
        for side in [run % 2, (run + 1) % 2] {
            if side == 0 {
                let (took, path) = install(&data, &artifact, &built.digest)?;
                ours.push(took);
                same("the tree of the agent", &expected, &census(&path)?)?;
                set_aside(&path, &dir.join(format!("agent-{run}")))?;
            } else {
                let to = dir.join(format!("tar-{run}"));
                let (both, tar) = tar(&artifact, &to)?;
                theirs.push(both);
                alone.push(tar);
                same("the tree of tar", &expected, &census(&to)?)?;
            }
        }
    }
    let (entries, bytes, sum) = expected;
    println!(
        "unpack: {entries} entries, {bytes} bytes in files, artifact of {} bytes, checksum {sum:016x}",
        built.size
    );
    raw("unpack: agent, fetched into the cache first", "s", &fetched);
    let ours = raw("unpack: agent, all checks, from the cache", "s", &ours);
    raw("unpack: tar xzf alone, not durable", "s", &alone);
    let theirs = raw("unpack: tar xzf && sync", "s", &theirs);
    ratio("agent.unpack.vs-tar", ours / theirs, Goal::AtMost(1.2));
    Ok(())
}
