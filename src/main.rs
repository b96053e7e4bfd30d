//! The `cinder` command.

mod cli;
mod printer;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
