//! The `lorafa-opt` binary.

use clap::Parser;
use lorafa_cli::args::Cli;
use lorafa_cli::{Error, run};
use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    report_size_limits();
    match run(&cli, &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(Error::Output(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is gone too, the exit status has to do.
            let _ = writeln!(stderr(), "lorafa-opt: {error}");
            ExitCode::from(error.status())
        }
    }
}

/// Lets a write beyond a limit on file sizes fail, and be reported as a full disk is, in place of ending the process.
fn report_size_limits() {
    #[cfg(unix)]
    {
        let seen = std::sync::Arc::default();
        // Where no handler can be set, the signal ends the process.
        let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, seen);
    }
}
