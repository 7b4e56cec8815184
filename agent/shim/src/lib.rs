//! The supervisor of one launchable, and the client the agent uses to talk to it.
//!
//! A *shim* is a small process of its own session, parent and subreaper of one launchable. It
//! starts the launchable, copies its output to rotated files, writes down how it ended, starts it
//! again by its restart policy, and stops it with everything it started. It outlives the agent:
//! everything they share is in one directory.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `spec` | agent | what to run, and how ([`Spec`]) |
//! | `state` | shim | what it is doing ([`State`]); two slots, the newer whole one counts |
//! | `exits` | shim | how the last 32 runs ended ([`ExitRecord`]), each on disk before the next run |
//! | `sock` | shim | requests and subscriptions ([`protocol`]), for root and the shim's own user |
//! | `lock` | shim | held while it lives: no two shims, no two copies of a launchable |
//! | `out` | shim | the FIFO between the launchable's output and the log |
//! | `marks.<inode>` | shim | where in a file of the log runs begin and end, and when output came ([`Mark`]) |
//!
//! The directory is the shim's user's alone (mode 0700). Files carry a version; both sides ignore
//! keys they do not know, so agent and shim need not be of the same age.
//!
//! A few rules:
//!
//! - A launchable that rests (stopped, or finished by its policy) keeps its shim, which answers
//!   and uses no processor time, until [`Request::Quit`]. Another shim in the same directory goes
//!   on where the last one was: what was stopped or finished in this generation stays so.
//! - When the launchable's process ends by itself, what it left behind is killed before the next
//!   start. When it is stopped, what it started has the stop timeout, too.
//! - A killed shim ends nothing by itself. The next one kills what is left, records the end as
//!   unknown and applies the restart policy. Whoever wants the launchable down, and finds its shim
//!   killed, starts the next one by [`spawn_down`]: any other would start the launchable first.
//! - SIGTERM to a shim (the machine goes down, or everything is to be cleared away by hand) stops
//!   the launchable and then the shim; the next shim starts it again.
//! - Quit the shim before removing its directory: without it nobody can reach the shim any more.
//!
//! ```no_run
//! use std::{path::Path, time::Duration};
//! use platctrl_shim_lib::{Request, Spec, spawn, write_spec};
//!
//! let dir = Path::new("/var/lib/platctrl/pods/default.web/shim/web");
//! let spec = Spec::new(["/srv/web/bin/launch"], "/srv/web", "/srv/log", "web");
//! write_spec(dir, &spec)?;
//! let mut shim = spawn(Path::new("/usr/libexec/platctrl-shim"), dir)?;
//! let running = shim.wait_until(Duration::from_secs(5), |state| state.child.is_some())?;
//! println!("pid {:?}", running.child);
//! shim.request(Request::Stop { timeout: None })?;
//! shim.wait_until(Duration::from_secs(15), |state| state.phase.at_rest())?;
//! shim.request(Request::Quit)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod client;
mod codec;
mod exits;
mod marks;
mod process;
pub mod protocol;
mod spec;
mod state;
mod supervisor;

pub use client::{Client, Event, spawn, spawn_command, spawn_down, spawned};
pub use exits::{ExitRecord, ExitStatus, read_exits};
pub use marks::{Mark, MarkKind, read_marks};
pub use process::ProcessId;
pub use protocol::{Reply, Request};
pub use spec::{
    LogSpec, Resource, Restart, RestartPolicy, Rlimit, SPEC_FILE, Spec, SpecError, User, read_spec,
    write_spec,
};
pub use state::{Phase, State, is_alive, read_state};
pub use supervisor::main;
