//! A relay between two machines, as narrow as it is told to be, that breaks down when it is told to: after so many bytes
//! it forwards nothing more, or hangs up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::netns::Machines;

/// What it does when its bytes are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breakdown {
    /// Hangs up on both.
    HangUp,
    /// Keeps quiet: nothing more arrives, and nobody is told.
    Silence,
}

/// A relay on one machine to a server on the other.
pub struct Relay {
    address: SocketAddr,
    /// Bytes from the source that are still forwarded.
    left: Arc<AtomicU64>,
    /// Bytes from the source that are forwarded in a second, at most.
    rate: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Relay {
    /// Starts one on a machine, to a server elsewhere, which breaks down after so many bytes of a source.
    pub fn start(
        machines: &Machines,
        machine: usize,
        to: &str,
        bytes: u64,
        how: Breakdown,
    ) -> Result<Self> {
        let (left, broken) = (
            Arc::new(AtomicU64::new(bytes)),
            Arc::new(AtomicBool::new(false)),
        );
        let rate = Arc::new(AtomicU64::new(u64::MAX));
        let state = (Arc::clone(&left), Arc::clone(&rate), Arc::clone(&broken));
        let to = to.to_owned();
        let address = machines.inside(machine, move || {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let address = listener.local_addr()?;
            // Started here, it is in the namespace as well.
            std::thread::spawn(move || {
                for source in listener.incoming().map_while(std::result::Result::ok) {
                    let Ok(target) = TcpStream::connect(&to) else {
                        return;
                    };
                    forward(source, target, (&state.0, &state.1), &state.2, how);
                }
            });
            Ok(address)
        })?;
        Ok(Self {
            address,
            left,
            rate,
            broken,
        })
    }

    /// Where to connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on no more than so many bytes of the source pass in a second.
    pub fn narrow(&self, rate: u64) {
        self.rate.store(rate, Ordering::Release);
    }

    /// Whether it has broken down.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// From now on it does not break down.
    pub fn mend(&self) {
        self.left.store(u64::MAX, Ordering::Release);
    }
}

fn forward(
    source: TcpStream,
    target: TcpStream,
    (left, rate): (&Arc<AtomicU64>, &Arc<AtomicU64>),
    broken: &Arc<AtomicBool>,
    how: Breakdown,
) {
    let (Ok(from_target), Ok(to_source)) = (target.try_clone(), source.try_clone()) else {
        return;
    };
    // A connection that has become silent stays so, also when later ones do not.
    let silent = Arc::new(AtomicBool::new(false));
    let (quiet, unlimited) = (Arc::clone(&silent), Arc::new(AtomicU64::new(u64::MAX)));
    let (left, rate, broken) = (Arc::clone(left), Arc::clone(rate), Arc::clone(broken));
    std::thread::spawn(move || {
        pump(
            from_target,
            to_source,
            (&unlimited, &unlimited),
            &AtomicBool::new(false),
            &quiet,
            Breakdown::HangUp,
        );
    });
    std::thread::spawn(move || pump(source, target, (&left, &rate), &broken, &silent, how));
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    (left, rate): (&AtomicU64, &AtomicU64),
    broken: &AtomicBool,
    silent: &AtomicBool,
    how: Breakdown,
) {
    let mut bytes = [0; 16 << 10];
    while let Ok(got @ 1..) = from.read(&mut bytes) {
        let had = left.load(Ordering::Acquire);
        if had != u64::MAX {
            left.store(had.saturating_sub(got as u64), Ordering::Release);
        }
        if had < got as u64 {
            broken.store(true, Ordering::Release);
            if how == Breakdown::Silence {
                silent.store(true, Ordering::Release);
            } else {
                break;
            }
        }
        while silent.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if to.write_all(&bytes[..got]).is_err() {
            break;
        }
        let rate = rate.load(Ordering::Acquire);
        std::thread::sleep(Duration::from_secs_f64(got as f64 / rate as f64));
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
