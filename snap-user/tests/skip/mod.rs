//! Skips as the summary of `cargo xtask test` finds them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

#[path = "../../src/skip.rs"]
mod printed;

pub use printed::{skip, without_root};
use snap_user::probe::{ProbeError, ProbeOptions, Probes};

/// The probes, or a printed reason why this test cannot run here.
pub fn loaded(options: &ProbeOptions) -> Option<Probes> {
    match Probes::load(options) {
        Ok(probes) => Some(probes),
        Err(error @ (ProbeError::NotPermitted { .. } | ProbeError::PidNamespace { .. })) => {
            without_root(&format!("the right to load the probes ({error})"));
            None
        }
        Err(error @ ProbeError::NoBtf { .. }) => {
            skip(
                &format!("what the probes need of the kernel ({error})"),
                "use a kernel with CONFIG_DEBUG_INFO_BTF",
            );
            None
        }
        Err(error) => panic!("{error}"),
    }
}
