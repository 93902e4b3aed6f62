//! Messages of the programs reach the ordinary log. Alone in its process: there is one logger.

mod skip;
mod sleeper;

use sleeper::Sleeper;
use snap_user::probe::ProbeOptions;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tracing_log::log::{self, LevelFilter, Log, Metadata, Record};

struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0
            .lock()
            .unwrap()
            .push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn the_end_of_a_tracked_process_is_in_the_log_at_debug_level() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let Some(mut probes) = skip::loaded(&ProbeOptions::default()) else {
        return;
    };
    let sleeper = Sleeper::start();
    let pid = sleeper.id();
    probes.track(pid).unwrap();
    drop(sleeper);

    let wanted = format!("DEBUG process {pid}: ended");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !LINES.0.lock().unwrap().contains(&wanted) {
        let lines = LINES.0.lock().unwrap().clone();
        assert!(Instant::now() < deadline, "{wanted:?} is not in {lines:?}");
        probes.drain(|_| {});
        std::thread::sleep(Duration::from_millis(5));
    }
}
