use snap_user::session::*;
use std::time::Duration;
fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(std::env::var("KSNAP_LOG").unwrap_or("warn".into()))
        .with_writer(std::io::stderr)
        .init();
    let a: Vec<String> = std::env::args().collect();
    let store = std::path::PathBuf::from(std::env::var("KSNAP_STORE").unwrap());
    let opts = Options {
        audit: std::env::var("AUDIT").is_ok(),
        probes: std::env::var("NOPROBES").is_err(),
        tracker: std::env::var("TRACKER")
            .map(|t| t.parse().unwrap())
            .unwrap_or_default(),
        ..Default::default()
    };
    let sched = Schedule {
        every: Duration::from_millis(a.get(3).map_or(100, |v| v.parse().unwrap())),
        count: a.get(4).map(|v| v.parse().unwrap()),
        lasting: None,
    };
    let mut report = |p: &Progress| match p {
        Progress::Taken(t) => {
            let c = &t.costs;
            let f = &c.phases;
            println!(
                "{} {} stop {}us seen {:?} (freeze {} scan {} copy {} state {} thaw {}) pre {} enc {} wr {} sync {} | res {} scanned {} dirty {} stopcopy {} copied {} changed {} full {} faults {} out {}K drops {}",
                t.seq,
                t.id.short(),
                f.stop_ns / 1000,
                c.stop_seen_ns.map(|n| n / 1000),
                f.freeze_ns / 1000,
                f.scan_ns / 1000,
                f.copy_ns / 1000,
                f.state_ns / 1000,
                f.thaw_ns / 1000,
                f.precopy_ns / 1000,
                f.encode_ns / 1000,
                f.write_ns / 1000,
                f.sync_ns / 1000,
                c.pages.resident,
                c.pages.scanned,
                c.pages.dirty,
                c.pages.copied_stopped,
                c.pages.copied,
                c.pages.changed,
                c.full_scan,
                c.faults,
                c.bytes_out / 1024,
                c.ring_drops
            );
        }
        p => println!("{p:?}"),
    };
    match a[1].as_str() {
        "watch" => println!(
            "{:?}",
            watch(&store, a[2].parse().unwrap(), &sched, &opts, &mut report)
        ),
        "snap" => println!(
            "{:?}",
            snap(&store, a[2].parse().unwrap(), &opts).map(|t| t.id)
        ),
        "rollback" => println!(
            "{:?}",
            rollback(&store, a[2].parse().unwrap(), &a[3], &opts)
        ),
        _ => panic!(),
    }
}
