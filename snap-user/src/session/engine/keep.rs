//! Ending a process whose connections are kept.

use crate::capture::CaptureError;
use crate::restore::fault;
use crate::session::{KeptConnections, Result, Taken};
use crate::sys::{Custodian, Frozen};

/// Ends a process whose connections are kept.
///
/// # Errors
/// It lives, and goes on with them.
pub(super) fn end_keeping(
    held: Frozen,
    mut connections: Option<Custodian>,
    taken: &mut Taken,
) -> Result<()> {
    fault::point("tcp-taken");
    let intended = match &mut connections {
        Some(custodian) => custodian.intend(),
        None => Ok(()),
    };
    let killed = intended.and_then(|()| {
        fault::point("tcp-intended");
        fault::failure("tcp-killing")?;
        held.signal(libc::SIGKILL)
    });
    if let Err(e) = killed {
        let pid = held.pid();
        // In this order: a program that ran before would find its sockets out of use.
        drop(connections);
        drop(held);
        return Err(CaptureError::from_sys(pid, e).into());
    }
    held.await_end();
    fault::point("tcp-killed");
    keep_connections(connections, taken);
    Ok(())
}

/// Has connections kept whose process has been killed.
fn keep_connections(connections: Option<Custodian>, taken: &mut Taken) {
    let Some(custodian) = connections else {
        return;
    };
    let count = custodian.sockets().count() as u32;
    match custodian.keep() {
        Ok(holder) => taken.kept = Some(KeptConnections { count, holder }),
        Err(e) => taken
            .unsupported
            .push(format!("its connections end with it: {e}")),
    }
}
