//! `platctrl agent` in a program of its own, `platctrl-agent`, that lies beside `platctrl`.
//!
//! An agent is there on every machine, as root, for as long as the machine. What it never needs
//! (server, controllers, verbs) would be most of its code and of what it costs in memory: the
//! kernel maps a program in pieces, and the code that is used lies scattered among what is not.
//! The arguments are those of `platctrl agent`, word for word.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Subcommand};

use super::{Cli, Refusal, Setting, end, process};
use crate::error::{Failure, Result};
use crate::roles;

/// The program's name.
pub(super) const PROGRAM: &str = "platctrl-agent";

/// What the program understands of the command line's verbs.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Look after the pods of this machine, on a store that many machines use
    Agent(Box<roles::AgentArgs>),
}

/// Turns this process into the agent's program, with the same arguments.
///
/// # Errors
/// It is not there, or cannot be executed.
pub(super) fn turn_into() -> Result<()> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot tell where platctrl lies: {error}")))?;
    let program = own.with_file_name(PROGRAM);
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let error = Command::new(&program)
        .arg0(name.as_deref().unwrap_or(OsStr::new("platctrl")))
        .args(arguments)
        .exec();
    Err(
        Failure::failed(format!("cannot execute {}: {error}", program.display())).hint(format!(
            "install {PROGRAM} beside {}, of the same version",
            own.display()
        )),
    )
}

/// The whole program, on the arguments of this process.
pub(crate) fn run() -> ExitCode {
    platctrl_agent::keep_little_memory();
    let understood = Cli::<Verb>::command()
        .try_get_matches()
        .and_then(|matches| Cli::<Verb>::from_arg_matches(&matches).map(|cli| (cli, matches)));
    let (cli, matches) = match understood {
        Ok(understood) => understood,
        Err(error) => return Refusal::Usage(error).report(),
    };
    let setting = Setting::new(&cli.server, cli.verbose, &matches, None);
    crate::log::to_stderr(setting.verbose);
    let Verb::Agent(args) = cli.verb;
    end(process(roles::agent(&args, &setting)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of a grammar's agent: name, and what its help says.
    fn flags(mut grammar: clap::Command) -> Vec<(String, String)> {
        grammar.build();
        let agent = grammar.find_subcommand("agent").unwrap();
        let flags = agent.get_arguments();
        let text = |it: &clap::Arg| it.get_help().map(ToString::to_string).unwrap_or_default();
        flags
            .map(|it| (it.get_id().to_string(), text(it)))
            .collect()
    }

    #[test]
    fn both_programs_understand_the_same_of_an_agent() {
        Cli::<Verb>::command().debug_assert();
        let all = Cli::<super::super::Verb>::command();
        assert_eq!(flags(Cli::<Verb>::command()), flags(all));
    }
}
