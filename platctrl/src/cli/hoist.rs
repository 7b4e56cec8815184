//! `hoist`: makes artifacts, and looks at them as agents do.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use platctrl_agent::hoist::{self, EntryKind, Launch};
use serde_json::json;

use crate::error::{Failure, Result};
use crate::output::{self, Table};

#[derive(Debug, Subcommand)]
pub(crate) enum HoistVerb {
    /// Pack a directory with a bin/launch into an artifact
    Build {
        /// The directory
        dir: PathBuf,
        /// The artifact to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Show what is in an artifact
    Inspect {
        /// The artifact
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Do everything that an agent does before it runs an artifact
    Verify {
        /// The artifact
        file: PathBuf,
        /// What its digest has to be
        #[arg(long, value_name = "sha256:…")]
        digest: Option<hoist::Digest>,
    },
}

pub(crate) fn run(verb: &HoistVerb) -> Result<()> {
    match verb {
        HoistVerb::Build { dir, output } => {
            let built =
                hoist::build(dir, output).map_err(|error| failed(&error, &error.to_string()))?;
            output::print(format_args!(
                "{} {} ({} bytes)\n",
                built.digest,
                output.display(),
                built.size
            ))
        }
        HoistVerb::Inspect { file, json } => {
            let summary = hoist::inspect(file).map_err(|error| refused(file, &error))?;
            if *json {
                return output::print(output::json_text(&json!(summary)));
            }
            inspect(&summary)
        }
        HoistVerb::Verify { file, digest } => {
            let verified =
                hoist::verify(file, digest.as_ref()).map_err(|error| refused(file, &error))?;
            output::print(format_args!(
                "{} {}: {} entries, {} bytes unpacked, {}\n",
                verified.digest,
                file.display(),
                verified.entries,
                verified.unpacked_size,
                programs(&verified.launch)
            ))
        }
    }
}

/// What is wrong with an artifact, with the name of its file.
pub(super) fn problem(file: &Path, error: &hoist::Error) -> String {
    let (name, text) = (file.display().to_string(), error.to_string());
    if text.contains(&name) {
        text
    } else {
        format!("{name}: {text}")
    }
}

fn refused(file: &Path, error: &hoist::Error) -> Failure {
    failed(error, &problem(file, error))
}

fn failed(error: &hoist::Error, message: &str) -> Failure {
    let failure = Failure::failed(output::plain(message));
    match error {
        hoist::Error::Refused(_) => failure.hint(
            "`platctrl hoist build DIR -o FILE` packs a directory in a form that agents take",
        ),
        hoist::Error::LaunchInvalid { .. } => {
            failure.hint("put it right in the directory that is packed, and pack it again")
        }
        hoist::Error::DigestMismatch { .. } => {
            failure.hint("this is not the file that the digest was made of")
        }
        hoist::Error::NotFound { .. } | hoist::Error::Io { .. } => {
            failure.hint("name a file or directory that is there and that you may read or write")
        }
        _ => failure,
    }
}

fn programs(launch: &Launch) -> String {
    match launch {
        Launch::Directory(programs) => {
            let names: Vec<_> = programs.keys().map(String::as_str).collect();
            output::plain(&format!("starts {}", names.join(", ")))
        }
        _ => "starts bin/launch".to_owned(),
    }
}

fn inspect(summary: &hoist::Summary) -> Result<()> {
    let mut text = format!(
        "Digest:    {}\nSize:      {} bytes, {} unpacked\n",
        summary.digest, summary.size, summary.unpacked_size
    );
    match (&summary.launch, &summary.launch_problem) {
        (_, Some(problem)) => text.push_str(&format!("Launch:    {}\n", output::plain(problem))),
        (Some(launch), None) => text.push_str(&format!("Launch:    {}\n", programs(launch))),
        (None, None) => {}
    }
    let lines = summary.entries.iter().map(|entry| {
        let kind = match entry.kind {
            EntryKind::Directory => "directory",
            EntryKind::Symlink => "link",
            EntryKind::HardLink => "hard link",
            EntryKind::File if entry.executable => "program",
            EntryKind::File => "file",
        };
        let target = entry
            .target
            .as_ref()
            .map(|target| format!(" -> {target}"))
            .unwrap_or_default();
        vec![
            kind.to_owned(),
            entry.size.to_string(),
            output::plain(&format!("{}{target}", entry.path)),
        ]
    });
    text.push('\n');
    text.push_str(&Table::default().render(&lines.collect::<Vec<_>>()));
    output::print(text)
}
