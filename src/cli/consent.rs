//! The question before something that may lose data.
//!
//! On a terminal it is asked. A script has no terminal: there the routes that it names are its answer, and for what it
//! does not name one by one (`--all`, a file that would be replaced) it has to say `--yes`.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::bail;

/// What was said on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// `--yes`.
    Yes,
    /// Each of what is concerned was named.
    Named,
    /// Nothing that could be taken for an answer.
    Nothing,
}

impl Given {
    /// Of a command on routes.
    pub fn of(yes: bool, all: bool) -> Self {
        match (yes, all) {
            (true, _) => Self::Yes,
            (false, true) => Self::Nothing,
            (false, false) => Self::Named,
        }
    }
}

/// Goes on if the operator agrees; an error that says how to agree if not.
pub fn ask(danger: &str, given: Given) -> anyhow::Result<()> {
    if given == Given::Yes {
        return Ok(());
    }
    let (mut input, mut error) = (std::io::stdin().lock(), std::io::stderr());
    if !(input.is_terminal() && error.is_terminal()) {
        if given == Given::Named {
            return Ok(());
        }
        bail!("{danger}. Nothing was done: there is no terminal to ask on; add --yes if that is meant");
    }
    write!(error, "{danger}.\nGo on? [y/N] ")?;
    error.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}
