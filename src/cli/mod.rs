//! The command line.

/// Runs the command line of this process and gives its exit code.
pub fn run() -> std::process::ExitCode {
    std::process::ExitCode::from(2)
}
