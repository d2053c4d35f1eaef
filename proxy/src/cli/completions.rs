//! `ferrule completions`: what a shell needs to complete a line that begins with `ferrule`.

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::{generate, shells};

use super::{Arguments, Exit, Failure, answer};

#[derive(Debug, Args)]
pub(super) struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

// === impl Completions ===

impl Completions {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        answer(self.shell.script())
    }
}

// === impl Shell ===

impl Shell {
    fn script(self) -> String {
        let mut command = Arguments::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        match self {
            Self::Bash => generate(shells::Bash, &mut command, name, &mut script),
            Self::Zsh => generate(shells::Zsh, &mut command, name, &mut script),
            Self::Fish => generate(shells::Fish, &mut command, name, &mut script),
        }
        String::from_utf8_lossy(&script).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_completed_in_every_shell() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = shell.script();
            let command = Arguments::command();
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{shell:?}: {}", command.get_name());
            }
        }
    }
}
