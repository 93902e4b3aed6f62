//! Diagnostics on standard error.

use super::context::Context;
use super::status;
use std::io::{self, Write};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Those who talk to object storage say no more than this, whatever is asked for.
const QUIET: [&str; 5] = [
    "object_store=error",
    "reqwest=error",
    "hyper=error",
    "hyper_util=error",
    "h2=error",
];

/// The library that loads the probes tells each relocation that it makes, among which their messages would be lost.
const LOADER: [&str; 2] = ["aya=info", "aya_obj=info"];

/// Lets messages through: -q errors, else warnings, -v what happens, -vv what the probes say, -vvv everything.
/// KSNAP_LOG says it in full (`ksnap=debug,aya=info`).
///
/// Messages of the `log` crate, which the probes use, arrive as well.
pub fn init(context: &Context) {
    let level = match (context.is_quiet(), context.verbosity()) {
        (true, _) => "error",
        (_, 0) => "warn",
        (_, 1) => "info",
        (_, 2) => "debug",
        _ => "trace",
    };
    let filter = match std::env::var("KSNAP_LOG") {
        Ok(directives) if !directives.is_empty() => {
            EnvFilter::try_new(&directives).unwrap_or_else(|error| {
                context.tell(&format!("KSNAP_LOG is passed over: {error}"));
                EnvFilter::new(level)
            })
        }
        _ if context.verbosity() == 2 => {
            LOADER.iter().fold(EnvFilter::new(level), |filter, target| {
                filter.add_directive(target.parse().expect("a directive"))
            })
        }
        _ => EnvFilter::new(level),
    };
    // What they say of requests has keys and signatures in it.
    let filter = QUIET.iter().fold(filter, |filter, target| {
        filter.add_directive(target.parse().expect("a directive"))
    });
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Stderr)
        // It would be told on standard error, which is what failed.
        .log_internal_errors(false)
        .with_ansi(context.err_style().is_on())
        .with_target(context.verbosity() > 1);
    // A test harness may have set one up already.
    let _ = match context.verbosity() {
        0 => tracing::subscriber::set_global_default(format.without_time().finish())
            .map_err(drop)
            .and_then(|()| tracing_log::LogTracer::init().map_err(drop)),
        _ => tracing::subscriber::set_global_default(format.finish())
            .map_err(drop)
            .and_then(|()| tracing_log::LogTracer::init().map_err(drop)),
    };
}

/// Standard error, from under the status line.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(io::stderr())
    }
}

/// Takes the status line away before each message; the next update draws it again.
struct Line(io::Stderr);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        status::clear_line();
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
