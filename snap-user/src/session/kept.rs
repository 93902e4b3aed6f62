//! Ending processes whose connections are kept.

use super::{KeptConnections, Result};
use crate::capture::CaptureError;
use crate::restore::fault;
use crate::sys::{Custodian, Frozen};

/// What has become of the connections of processes that have been ended.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Who keeps them, if there were any.
    pub(super) kept: Option<KeptConnections>,
    /// Why they have ended with the processes.
    pub(super) lost: Option<String>,
}

/// Ends processes, in this order, whose connections are kept.
///
/// # Errors
/// They live, and go on with their connections; of several, those before the one that could not be ended do not.
pub(super) fn end_keeping(
    held: impl IntoIterator<Item = Frozen>,
    mut connections: Option<Custodian>,
) -> Result<Keeping> {
    fault::point("tcp-taken");
    let mut held = held.into_iter().peekable();
    let first = held.peek().map_or(0, Frozen::pid);
    let failed = |pid, e| Err(CaptureError::from_sys(pid, e).into());
    if let Some(custodian) = &mut connections
        && let Err(e) = custodian.intend()
    {
        // In this order: a program that ran before would find its sockets out of use.
        drop(connections);
        held.for_each(drop);
        return failed(first, e);
    }
    while let Some(one) = held.next() {
        let killed = match one.pid() == first {
            true => {
                fault::point("tcp-intended");
                fault::failure("tcp-killing").and_then(|()| one.signal(libc::SIGKILL))
            }
            false => one.signal(libc::SIGKILL),
        };
        if let Err(e) = killed {
            let pid = one.pid();
            drop(connections);
            drop(one);
            held.for_each(drop);
            return failed(pid, e);
        }
        one.await_end();
        fault::point("tcp-killed");
    }
    let Some(custodian) = connections else {
        return Ok(Keeping::default());
    };
    let count = custodian.sockets().count() as u32;
    Ok(match custodian.keep() {
        Ok(holder) => Keeping {
            kept: Some(KeptConnections { count, holder }),
            lost: None,
        },
        Err(e) => Keeping {
            kept: None,
            lost: Some(format!("its connections end with it: {e}")),
        },
    })
}
