//! `cutover completions` and `cutover man`: what a shell and `man` want to know, made from the command line itself.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::output::say;
use crate::cli::{Cli, DONE};

/// Prints the script that completes words in a shell.
pub fn completions(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cutover", &mut script);
    say!("{}", String::from_utf8(script).context("the script is text")?.trim_end());
    Ok(DONE)
}

/// Writes `cutover.1` and a page for each command.
pub fn pages(directory: &Path) -> anyhow::Result<u8> {
    let doing = || format!("write manual pages into {}", directory.display());
    fs::create_dir_all(directory).with_context(doing)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(doing)?;
    let pages = fs::read_dir(directory).with_context(doing)?.count();
    say!(
        "{pages} pages in {}; `man -l {}` shows the first",
        directory.display(),
        directory.join("cutover.1").display()
    );
    Ok(DONE)
}
