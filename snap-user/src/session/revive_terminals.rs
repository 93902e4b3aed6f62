//! Terminals of a tree that are there before its processes are: only so can sessions begin with them.

use super::Result;
use crate::model::{Detail, OpenFile, ProcessState, Terminal};
use crate::restore::files::Source;
use crate::restore::revive::{Controlling, Line, Lines};
use crate::sys::{self, fd};
use rustix::fs::Uid;
use std::os::fd::OwnedFd;

/// Makes all pseudo-terminals of the tree whose masters are made anew, each with the number that it had where that is
/// free. `plan` has those that sessions take.
///
/// # Errors
/// Those of making them; nothing has been started then.
pub(super) fn make_lines(
    plan: &[Controlling],
    files: &[OpenFile],
    sources: &[Source],
    states: &[&ProcessState],
    notes: &mut Vec<String>,
) -> Result<Lines> {
    let mut lines = Lines::default();
    let mut masters: Vec<(u32, usize, &Terminal)> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        if let (Detail::Terminal(terminal), Source::Make) = (&file.detail, &sources[at]) {
            masters.extend(terminal.master_of.map(|number| (number, at, terminal)));
        }
    }
    // The lowest number first: it is what the kernel gives.
    masters.sort_unstable_by_key(|(number, at, _)| (*number, *at));
    for (number, at, terminal) in masters {
        let open = || {
            let own = std::process::id() as i32;
            sys::open_in_root(own, "/dev/ptmx", files[at].flags)
        };
        let master = fd::master_with_number(open, number)?;
        fd::unlock_master(&master)?;
        // Now, while nobody is there to be told of another size.
        fd::set_terminal(&master, terminal)?;
        let now = fd::master_of(&master)?;
        if now != number {
            notes.push(format!(
                "the terminal that was /dev/pts/{number} is /dev/pts/{now} now"
            ));
        }
        lines.files.insert(at, master);
    }
    for one in plan {
        let master = &lines.files[&one.master];
        let side = fd::open_other_side(master, libc::O_RDWR as u32)?;
        if let Err(why) = give(&side, states[one.leader]) {
            let number = fd::master_of(master)?;
            notes.push(format!("/dev/pts/{number} belongs to ksnap's user: {why}"));
        }
        let plan = one.clone();
        lines.all.push(Line { plan, side });
    }
    Ok(lines)
}

/// It belongs to who works at it, as those see to that make terminals for users.
fn give(side: &OwnedFd, leader: &ProcessState) -> std::io::Result<()> {
    let threads = &leader.threads;
    let credentials = threads
        .first()
        .and_then(|t| t.attributes.credentials.as_ref());
    match credentials.map(|c| Uid::from_raw(c.uids[0])) {
        Some(user) if user != rustix::process::geteuid() => {
            Ok(rustix::fs::fchown(side, Some(user), None)?)
        }
        _ => Ok(()),
    }
}
