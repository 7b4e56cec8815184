//! `store`: makes, looks at, saves and moves the store that everything is kept in.
//!
//! `backup` and `compact` ask the server, which has the store open; all else opens the store
//! itself, and an embedded one must not be in use then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use futures::StreamExt as _;
use platctrl_framework::environment::Environment;
use platctrl_framework::model::identity::{self, Anchor, AnchorState, IdentityError};
use platctrl_framework::root::{self, CopyError, CopyProgress};
use platctrl_framework::store::Store;
use platctrl_store_embedded::{self as embedded, Report};
use tokio::io::AsyncWriteExt as _;

use super::Setting;
use crate::api::OTHER_VERSION;
use crate::error::{Code, Failure, Result};
use crate::output;
use crate::output::progress::{Bar, Unit};
use crate::store::{StoreAccess, StoreUrl};

#[derive(Debug, Subcommand)]
pub(crate) enum StoreVerb {
    /// Make an empty store ready for use
    Init {
        /// Which: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        url: String,
    },
    /// Show which store it is, and whether it may be written
    Info {
        /// Which: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        url: String,
    },
    /// Read all of an embedded store that nobody has open, or of a backup, and compare it with its checksums
    Check {
        /// embedded:DIR, or the file of a backup
        store: String,
    },
    /// Save the server's store to a file while it runs
    Backup {
        /// The file; it must not exist
        file: PathBuf,
    },
    /// Make an embedded store of a backup, and note that it was restored
    Restore {
        /// The file of a backup
        file: PathBuf,
        /// The new store: embedded:DIR
        url: String,
    },
    /// Give unused space of the server's store back; commits wait meanwhile
    Compact,
    /// Copy a store into an empty one of any kind; the source is sealed, the copy goes on as the same store
    Copy {
        /// The source: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        from: String,
        /// The target, which must be empty: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        to: String,
    },
    /// Let a store that was copied be written again; only if its copy is not in use
    Unseal {
        /// Which: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        url: String,
    },
    /// Show the rights that an agent, controllers or the server need in etcd or Consul, or make them with --apply
    Policy(super::policy::PolicyArgs),
    /// Note that a store was restored by its own tools: its history begins anew
    Restored {
        /// Which: embedded:DIR, etcd://HOST:PORT,…/ROOT or consul://HOST:PORT/ROOT
        url: String,
    },
}

/// What is done to a store, and how it is reached.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    verb: StoreVerb,
    #[command(flatten)]
    access: StoreAccess,
}

pub(crate) async fn run(args: &StoreArgs, setting: &Setting) -> Result<()> {
    let environment = Environment::system();
    let access = &args.access;
    let open = async |url: &str, create| {
        let url = StoreUrl::parse(url)?;
        let store = url.open(access, &environment, create).await?;
        Ok::<_, Failure>((url, store))
    };
    match &args.verb {
        StoreVerb::Init { url } => {
            let (url, store) = open(url, true).await?;
            let anchor = identity::initialise(&*store, &environment).await;
            let anchor = anchor.map_err(|error| identity_failure(&url, error))?;
            output::print(format_args!(
                "store {} is ready at {url}\n",
                anchor.store_id
            ))
        }
        StoreVerb::Info { url } => {
            let (url, store) = open(url, false).await?;
            info(&url, &*store).await
        }
        StoreVerb::Check { store } => check(store).await,
        StoreVerb::Backup { file } => backup(file, setting).await,
        StoreVerb::Restore { file, url } => restore(file, url, &environment).await,
        StoreVerb::Compact => compact(setting).await,
        StoreVerb::Copy { from, to } => {
            if StoreUrl::parse(from)? == StoreUrl::parse(to)? {
                return Err(Failure::usage("source and target are the same store"));
            }
            copy(open(from, false).await?, open(to, true).await?).await
        }
        StoreVerb::Unseal { url } => {
            let (url, store) = open(url, false).await?;
            let anchor = root::unseal(&*store).await;
            let anchor = anchor.map_err(|error| identity_failure(&url, error))?;
            output::print(format_args!(
                "store {} may be written again\n",
                anchor.store_id
            ))
        }
        StoreVerb::Policy(args) => super::policy::run(args, access).await,
        StoreVerb::Restored { url } => {
            let (url, store) = open(url, false).await?;
            let anchor = root::restored(&*store, &environment).await;
            say_restored(&anchor.map_err(|error| identity_failure(&url, error))?)
        }
    }
}

/// Names the store whose identity is not as it should be.
fn identity_failure(url: &StoreUrl, error: IdentityError) -> Failure {
    let code = match error {
        IdentityError::NotEmpty { .. } => Code::Conflict,
        IdentityError::Uninitialised => Code::Unreachable,
        error => return Failure::failed(format!("{url}: {error}")),
    };
    Failure::new(code, format!("{url}: {error}"))
}

async fn info(url: &StoreUrl, store: &dyn Store) -> Result<()> {
    let opened = identity::open(store).await;
    let (anchor, revision) = opened.map_err(|error| identity_failure(url, error))?;
    let state = match anchor.state {
        AnchorState::Active => "active",
        AnchorState::Sealed => "sealed: it was copied elsewhere, and nobody writes to it",
    };
    output::print(format_args!(
        "store     {}\nat        {url}\nstate     {state}\nepoch     {}\nrevision  {}\n",
        anchor.store_id,
        anchor.epoch,
        revision.counter()
    ))
}

fn describe(report: &Report) -> String {
    format!(
        "{} keys, {} bytes of values, revision {}, history from {}",
        report.keys,
        report.value_bytes,
        report.revision.counter(),
        report.oldest.counter()
    )
}

/// Runs what blocks for long.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, embedded::OpenError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(Failure::failed)?.map_err(Failure::failed)
}

async fn check(store: &str) -> Result<()> {
    let report = if store.contains(':') && !Path::new(store).exists() {
        let url = StoreUrl::parse(store)?;
        let dir = url.directory()?.to_owned();
        if !dir.exists() {
            return Err(Failure::failed(format!(
                "there is no store in {}",
                dir.display()
            )));
        }
        blocking(move || embedded::check(dir)).await?
    } else {
        let file = PathBuf::from(store);
        blocking(move || embedded::check_backup(file)).await?
    };
    output::print(format_args!("{store} is whole: {}\n", describe(&report)))
}

async fn backup(file: &Path, setting: &Setting) -> Result<()> {
    let cannot = |doing: &str, path: &Path, error: &std::io::Error| {
        Failure::failed(format!("cannot {doing} {}: {error}", path.display()))
    };
    if file
        .try_exists()
        .map_err(|error| cannot("look at", file, &error))?
    {
        return Err(
            Failure::failed(format!("{} exists already", file.display()))
                .hint("choose another name: backups are never overwritten"),
        );
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(format!(".unfinished-{}", std::process::id()));
    let unfinished = Unfinished(file.with_file_name(name));
    let path = &unfinished.0;
    let mut bytes = setting.api()?.stream("/store/backup").await?;
    let mut options = tokio::fs::OpenOptions::new();
    let target = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await;
    let mut target = target.map_err(|error| cannot("create", path, &error))?;
    let mut bar = Bar::new("saving the store", Unit::Bytes, None);
    let mut received = 0;
    while let Some(piece) = bytes.next().await {
        let piece = piece.map_err(|error| {
            let message = format!("the backup broke off: {error}");
            Failure::new(Code::Unreachable, message).hint("ask again; nothing was left behind")
        })?;
        let written = target.write_all(&piece).await;
        written.map_err(|error| cannot("write", path, &error))?;
        received += piece.len() as u64;
        bar.show(received);
    }
    drop(bar);
    let synced = target.sync_all().await;
    synced.map_err(|error| cannot("write", path, &error))?;
    drop(target);
    // What arrived is compared with its checksums before it may be called a backup.
    let copy = path.clone();
    let report = blocking(move || embedded::check_backup(copy)).await?;
    std::fs::hard_link(path, file).map_err(|error| cannot("create", file, &error))?;
    if let Some(dir) = file.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|error| cannot("write", dir, &error))?;
    }
    output::print(format_args!("{}: {}\n", file.display(), describe(&report)))
}

/// A file that is removed, because what counts has another name by then.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn restore(file: &Path, url: &str, environment: &Environment) -> Result<()> {
    let url = StoreUrl::parse(url)?;
    let (from, dir) = (file.to_owned(), url.directory()?.to_owned());
    let report = blocking(move || embedded::restore(from, dir)).await?;
    let store = url
        .open(&StoreAccess::default(), environment, false)
        .await?;
    let anchor = root::restored(&*store, environment).await;
    output::print(format_args!("{url}: {}\n", describe(&report)))?;
    say_restored(&anchor.map_err(|error| identity_failure(&url, error))?)
}

fn say_restored(anchor: &Anchor) -> Result<()> {
    output::note(
        "hint: what runs now is compared with what the store says; what would take much away is held until a person decides",
    );
    output::print(format_args!(
        "store {} is in epoch {}\n",
        anchor.store_id, anchor.epoch
    ))
}

async fn compact(setting: &Setting) -> Result<()> {
    output::note("commits wait while the store is compacted: seconds per GiB");
    let api = setting.api()?;
    let answer = api
        .call(http::Method::POST, "/store/compact", None)
        .await?
        .body;
    let (Some(after), Some(before)) = (answer["after"].as_u64(), answer["before"].as_u64()) else {
        return Err(
            Failure::failed("the server does not say how large the store is").hint(OTHER_VERSION),
        );
    };
    output::print(format_args!("{after} bytes, before {before}\n"))
}

type Opened = (StoreUrl, Arc<dyn Store>);

async fn copy((from, source): Opened, (to, target): Opened) -> Result<()> {
    let mut bar = Bar::new("copying", Unit::Keys, None);
    let show = |progress: CopyProgress| {
        let what = format!("{} written", progress.written);
        bar.show_of(progress.done, progress.total, what);
    };
    let report = root::copy(&*source, &*target, show).await;
    drop(bar);
    let report = report.map_err(|error| match error {
        CopyError::Source(error) => identity_failure(&from, error),
        CopyError::NotEmpty { .. } => Failure::new(Code::Conflict, format!("{to}: {error}")),
        error => Failure::failed(format!("{from} to {to}: {error}")).hint(format!(
            "copy again to go on where it stopped; `platctrl store unseal {from}` to stay with the source"
        )),
    })?;
    output::note(format_args!(
        "hint: {from} is sealed; `platctrl store unseal {from}` undoes that, as long as the copy is not in use"
    ));
    output::print(format_args!(
        "store {} is at {to} now, in epoch {}: {} keys, {}\n",
        report.anchor.store_id, report.anchor.epoch, report.keys, report.digest
    ))
}
