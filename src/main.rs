//! Maps the result of the command line to an exit code.

fn main() -> std::process::ExitCode {
    feedmirror::cli::main()
}
