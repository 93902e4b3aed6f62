//! The `ksnap` command.

fn main() -> std::process::ExitCode {
    snap_user::cli::main()
}
