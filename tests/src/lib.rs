//! Fixtures and victims of the end-to-end tests.
//!
//! # How to write a test
//!
//! One file per verb in `tests/tests/`, or a few. A test names what it needs, starts a victim, lets ksnap work on it, and
//! asks the victim itself whether all is well:
//!
//! ```no_run
//! use std::time::Duration;
//! use tests::{Footprint, Ksnap, Victim, require};
//!
//! #[test]
//! fn a_rollback_brings_the_counter_back() -> anyhow::Result<()> {
//!     require!(Root, Ksnap);
//!     let ksnap = Ksnap::new()?;
//!     let mut victim = Victim::spawn("counter", &["--mib", "16"])?;
//!     let before = Footprint::of(victim.pid())?;
//!     ksnap.ok(&["snap", &victim.pid().to_string(), "--audit"])?;
//!     let then = victim.status()?.counter;
//!     victim.wait_beyond(then + 500, Duration::from_secs(10))?;
//!     ksnap.ok(&["rollback", &victim.pid().to_string(), "latest", "-y"])?;
//!     assert!(victim.status()?.counter < then + 500);
//!     victim.check()?;                                  // every invariant, in the victim
//!     Footprint::of(victim.pid())?.nothing_left_since(&before)?;
//!     victim.quit()
//! }
//! ```
//!
//! - A test returns `anyhow::Result<()>` (or nothing); [`require!`] returns early with a printed, typed skip
//!   where something is missing. `KSNAP_TESTS_STRICT=1` turns skips into failures.
//! - Pass `--rollbacks` to a victim that the test is going to roll back: it then forgives what a rollback
//!   cannot restore (messages in a pipe, queued signals, reaped children), and nothing else.
//! - Everything that a fixture starts ends when it is dropped, by process id.
//! - A test's name is the sentence that it proves.
//!
//! # Layout
//!
//! | file | what it is |
//! |---|---|
//! | [`victim`] | the victim programs (binary `victim`) |
//! | [`subject`] | [`Victim`]: a running victim and its protocol |
//! | [`ksnap`] | [`Ksnap`]: runs the `ksnap` binary with a store of its own |
//! | [`watch`] | [`Watch`]: `ksnap watch` in the background, and what it says |
//! | [`background`] | [`Background`]: a child process with collected output and time limits |
//! | [`requires`] | [`require!`], [`Need`]: typed skips |
//! | [`footprint`] | [`Footprint`]: what a process looks like from outside, to find what was left behind |
//! | [`effort`] | how often a test does what it does, and how long it waits: `KSNAP_TESTS_SLOW` |
//! | [`elf32`] | a 32-bit program |
//! | [`bpf`] | the BPF programs in the kernel, to find those left behind |
//! | [`poke`] | damages a process's memory on purpose |
//! | [`swap`] | memory of processes on the disk |
//! | [`redis`], [`resp`], [`python`], [`nginx`], [`postgres`] | real programs under test |
//! | [`moto`], [`azurite`], [`google`] | [`Moto`], [`Azurite`], [`Google`]: servers of S3, Azure and Google |
//! | [`service`] | how they are started and asked |
//! | [`numbers`] | [`Numbers`]: lines of which none may be lost |
//! | [`netns`], [`apart`], [`relay`], [`remote`] | two network namespaces as two machines, what each has for itself beside that, a bad connection between them, and ksnap on each |
//! | [`stream`] | two programs that send each other a stream of bytes that both know |
//! | [`tree`] | trees of processes, captured, ended and brought back |
//! | [`family`] | two processes with something between them, rolled back together |
//! | [`clan`] | four processes that say what they are, some of which end and are made again |
//! | [`terminal`] | programs on terminals |
//! | [`tcp`] | processes with connections, taken and brought back |
//! | [`moving`] | [`moving::Moving`]: redis-server that moves between them |
//! | [`paths`] | where cargo put the binaries |

pub mod apart;
pub mod azurite;
pub mod background;
pub mod bpf;
pub mod clan;
pub mod effort;
pub mod elf32;
pub mod family;
pub mod footprint;
pub mod google;
pub mod ksnap;
pub mod moto;
pub mod moving;
pub mod netns;
pub mod nginx;
pub mod numbers;
pub mod paths;
pub mod poke;
pub mod postgres;
pub mod python;
pub mod redis;
pub mod refused;
pub mod relay;
pub mod remote;
pub mod requires;
pub mod resp;
pub mod service;
pub mod stream;
pub mod subject;
pub mod swap;
pub mod tcp;
pub mod terminal;
pub mod tree;
pub mod victim;
pub mod watch;

pub use azurite::Azurite;
pub use background::{Background, Finished};
pub use footprint::Footprint;
pub use google::Google;
pub use ksnap::Ksnap;
pub use moto::Moto;
pub use netns::Machines;
pub use nginx::Nginx;
pub use numbers::Numbers;
pub use python::Python;
pub use redis::Redis;
pub use refused::without_io_uring;
pub use relay::{Breakdown, Relay};
pub use remote::Pair;
pub use requires::Need;
pub use resp::{Reply, Resp};
pub use subject::{Status, Victim};
pub use watch::{Watch, Watched};
