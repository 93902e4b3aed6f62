//! Controlling terminals of the sessions of a tree: which come back, and with what.
//!
//! A process has the controlling terminal that its parent had when it was made, and only who leads a session can take
//! one (`ioctl_tty(2)`). So it is taken the moment the session begins, before any other process of it is made; a group
//! comes to its foreground when all groups are there.

use super::family::{Births, Kin};
use crate::model::{Detail, OpenFile, ProcessState, TreeMember};
use crate::restore::files::Source;
use crate::restore::state::terminal_name as name;
use crate::sys::fd::device_numbers;
use crate::sys::{self, Stub, StubCall, pidfd_getfd};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Major number of the sides of pseudo-terminals.
const PSEUDO: u32 = 136;

/// What a process of a tree had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Had {
    /// Device number of its controlling terminal; 0 for none.
    pub terminal: u32,
    /// Of one that leads a session: the group in the foreground of that.
    pub foreground: Option<i32>,
}

impl Had {
    /// As it was captured.
    pub fn of((state, member): (&&ProcessState, &TreeMember)) -> Self {
        Self {
            terminal: state.attributes.terminal,
            foreground: member.foreground,
        }
    }
}

/// A controlling terminal that comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controlling {
    /// Who leads its session, by its place.
    pub leader: usize,
    /// The open file that is its master, by its place.
    pub master: usize,
    /// Someone of the group in its foreground, where that is another one than the leader's.
    pub foreground: Option<usize>,
    /// Who has given it up, though it is in the session.
    pub without: Vec<usize>,
    /// Open files that were opened as `/dev/tty`: their places, and flags.
    pub by_name: Vec<(usize, u32)>,
}

/// The controlling terminals of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminals {
    /// Those that come back.
    pub all: Vec<Controlling>,
    /// What differs, a sentence each.
    pub notes: Vec<String>,
}

/// Plans them. `kin` has the processes, those that had ended behind the others; `had` what the living had, `own` the
/// controlling terminal of ksnap, which is that of those whose session began outside. `files` are all open files, and
/// `sources` where each comes from.
pub fn terminals(
    kin: &[Kin],
    births: &Births,
    had: &[Had],
    own: u32,
    files: &[OpenFile],
    sources: &[Source],
) -> Terminals {
    let mut plan = Terminals::default();
    let mut outside = BTreeSet::new();
    for (n, had) in had.iter().enumerate() {
        match births.leaders[n] {
            None if had.terminal != own && outside.insert(had.terminal) => {
                plan.notes.push(format!(
                    "process {}: its session began outside of the tree, with {}: it has ksnap's now, {}",
                    kin[n].pid,
                    name(had.terminal),
                    name(own)
                ));
            }
            Some(leader) if leader == n && had.terminal != 0 => {
                let found = find(had.terminal, files, sources);
                let (master, by_name) = match found {
                    Ok(found) => found,
                    Err(why) => {
                        plan.notes.push(format!(
                            "process {}, which leads a session: {} does not come back, since {why}: the session goes on without one, and without job control",
                            kin[n].pid,
                            name(had.terminal)
                        ));
                        continue;
                    }
                };
                let foreground = plan.foreground(kin, births, n, had.foreground);
                plan.all.push(Controlling {
                    leader: n,
                    master,
                    foreground,
                    without: Vec::new(),
                    by_name,
                });
            }
            _ => {}
        }
    }
    for (n, one) in had.iter().enumerate() {
        let with = births.leaders[n];
        if let Some(terminal) = plan.all.iter_mut().find(|t| Some(t.leader) == with)
            && one.terminal != had[terminal.leader].terminal
        {
            terminal.without.push(n);
            plan.notes.extend((one.terminal != 0).then(|| {
                format!(
                    "process {}: {} does not come back",
                    kin[n].pid,
                    name(one.terminal)
                )
            }));
        }
    }
    plan
}

impl Terminals {
    /// Someone of the group that was in the foreground.
    fn foreground(
        &mut self,
        kin: &[Kin],
        births: &Births,
        leader: usize,
        group: Option<i32>,
    ) -> Option<usize> {
        let pid = kin[leader].pid;
        let Some(group) = group else {
            self.notes.push(format!(
                "process {pid}, which leads a session: which group was in the foreground of its terminal is not known, and its own is"
            ));
            return None;
        };
        if group == kin[leader].group {
            return None;
        }
        let is_it = |n: &usize| kin[*n].group == group && births.leaders[*n] == Some(leader);
        let found = (0..kin.len()).find(is_it);
        if found.is_none() {
            self.notes.push(format!(
                "process {pid}, which leads a session: group {group}, which was in the foreground of its terminal, had ended, and its own is there"
            ));
        }
        found
    }
}

/// A master by its place, and what was opened as `/dev/tty`, with its flags.
type Found = (usize, Vec<(usize, u32)>);

/// The master of this terminal among the open files, and those that were opened as `/dev/tty`; a reason if there is
/// none.
fn find(terminal: u32, files: &[OpenFile], sources: &[Source]) -> Result<Found, &'static str> {
    let (PSEUDO, number) = device_numbers(terminal) else {
        return Err("it is no pseudo-terminal");
    };
    let detail = |at: usize| match &files[at].detail {
        Detail::Terminal(terminal) => Some(terminal),
        _ => None,
    };
    let mut all = 0..files.len();
    let master = all.find(|at| detail(*at).is_some_and(|t| t.master_of == Some(number)));
    let master = master.ok_or("a process outside of the tree has its master")?;
    if sources[master] != Source::Make {
        return Err("its master is another file now");
    }
    let is_side = |at: &usize| {
        detail(*at).is_some_and(|t| t.number() == Some(number)) && sources[*at] == Source::Make
    };
    let sides: Vec<usize> = (0..files.len()).filter(is_side).collect();
    if sides.is_empty() {
        // The kernel takes it from the session when the last one closes it, which would be ksnap.
        return Err("no process of the tree has it open");
    }
    let by_name = sides.into_iter().filter(|at| files[*at].link == "/dev/tty");
    Ok((master, by_name.map(|at| (at, files[at].flags)).collect()))
}

/// A controlling terminal that is there, for a session to take.
#[derive(Debug)]
pub struct Line {
    /// What is to be done with it.
    pub plan: Controlling,
    /// The side that is not its master, opened by ksnap.
    pub side: OwnedFd,
}

/// Terminals that are there before the processes.
#[derive(Debug, Default)]
pub struct Lines {
    /// One for each session that gets one.
    pub all: Vec<Line>,
    /// Open files of the tree that were made with them, by their places.
    pub files: BTreeMap<usize, OwnedFd>,
}

impl Lines {
    /// What open files those of the tree come from.
    pub fn lend(&self, sources: &mut [Source]) {
        for (at, made) in &self.files {
            sources[*at] = Source::Own(made.as_raw_fd());
        }
    }

    /// The leader of a session, which has just begun it, takes its terminal.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn take(&mut self, leader: usize, stub: &mut Stub) -> sys::Result<()> {
        let Some(line) = self.all.iter().find(|line| line.plan.leader == leader) else {
            return Ok(());
        };
        let side = line.side.as_raw_fd();
        stub.run(&[on_terminal("ioctl(TIOCSCTTY)", side, libc::TIOCSCTTY, 0)])?;
        for (at, flags) in &line.plan.by_name {
            let access = *flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
            let how = (access | libc::O_NOCTTY | libc::O_CLOEXEC) as u64;
            let path = stub.put(b"/dev/tty\0")?;
            let args = [libc::AT_FDCWD as u64, path, how, 0, 0, 0];
            let call = StubCall::new("open", "/dev/tty", libc::SYS_openat, args);
            let opened = stub.run(&[call])?[0] as RawFd;
            stub.forget();
            // In the leader it is closed with all else that it has inherited.
            self.files.insert(*at, pidfd_getfd(stub.pidfd(), opened)?);
        }
        Ok(())
    }

    /// The foreground of each, when all groups are there.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn settle(&self, stubs: &mut [Option<Stub>]) -> sys::Result<()> {
        for Line { plan, side } in &self.all {
            let side = side.as_raw_fd();
            let mut of = |n: usize, call: StubCall| {
                let stub = stubs[n].as_mut().expect("every process was made");
                stub.run(&[call])
            };
            for n in &plan.without {
                of(
                    *n,
                    on_terminal("ioctl(TIOCNOTTY)", side, libc::TIOCNOTTY, 0),
                )?;
            }
            let Some(member) = plan.foreground else {
                continue;
            };
            let pid = stubs[member]
                .as_ref()
                .expect("every process was made")
                .pid();
            let group = sys::proc::own_group(pid)?;
            // Its own group is in the foreground so far: whoever is not there would be stopped (SIGTTOU).
            let leader = stubs[plan.leader].as_mut().expect("every process was made");
            let at = leader.put(&group.to_ne_bytes())?;
            leader.run(&[on_terminal("ioctl(TIOCSPGRP)", side, libc::TIOCSPGRP, at)])?;
            leader.forget();
        }
        Ok(())
    }
}

fn on_terminal(name: &'static str, fd: RawFd, request: libc::c_ulong, arg: u64) -> StubCall {
    let args = [fd as u64, request, arg, 0, 0, 0];
    StubCall::new(name, "the controlling terminal", libc::SYS_ioctl, args)
}

#[cfg(test)]
mod tests {
    use super::super::family::births;
    use super::*;
    use crate::model::{FileKind, Terminal};

    const PTS_3: u32 = 0x8803;

    fn file(link: &str, device: (u32, u32), master_of: Option<u32>) -> OpenFile {
        OpenFile {
            kind: FileKind::CharDevice,
            link: link.into(),
            detail: Detail::Terminal(Terminal {
                device,
                master_of,
                ..Terminal::default()
            }),
            ..OpenFile::default()
        }
    }

    fn files() -> Vec<OpenFile> {
        vec![
            file("/dev/tty", (136, 3), None),
            file("/dev/ptmx", (5, 2), Some(3)),
            file("/dev/pts/3", (136, 3), None),
            file("/dev/tty", (136, 7), None),
        ]
    }

    /// A holder in a session from outside, a shell with a pipeline, and a job that has given the terminal up.
    fn kin() -> Vec<Kin> {
        let list = [
            (10, None, 5, 5),
            (11, Some(0), 11, 11),
            (12, Some(1), 11, 12),
            (13, Some(1), 11, 12),
            (14, Some(1), 11, 14),
            // Has ended.
            (15, Some(1), 11, 15),
        ];
        list.map(|(pid, parent, session, group)| Kin {
            pid,
            parent,
            session,
            group,
        })
        .to_vec()
    }

    fn had(foreground: Option<i32>) -> Vec<Had> {
        let with = |terminal, foreground| Had {
            terminal,
            foreground,
        };
        vec![
            with(0, None),
            with(PTS_3, foreground),
            with(PTS_3, None),
            with(PTS_3, None),
            with(0, None),
        ]
    }

    fn plan_of(had: &[Had], own: u32, files: &[OpenFile]) -> Terminals {
        let kin = kin();
        let births = births(&kin, 5);
        terminals(
            &kin,
            &births,
            had,
            own,
            files,
            &vec![Source::Make; files.len()],
        )
    }

    #[test]
    fn a_terminal_whose_master_is_in_the_tree_comes_back() {
        let plan = plan_of(&had(Some(12)), 0, &files());
        assert_eq!(
            plan.all,
            [Controlling {
                leader: 1,
                master: 1,
                foreground: Some(2),
                without: vec![4],
                by_name: vec![(0, 0)],
            }]
        );
        assert!(plan.notes.is_empty(), "{plan:?}");
    }

    #[test]
    fn the_group_in_the_foreground_may_have_ended() {
        let of = |group| {
            let plan = plan_of(&had(group), 0, &files());
            (plan.all[0].foreground, plan.notes.len())
        };
        assert_eq!(of(Some(11)), (None, 0));
        assert_eq!(of(Some(15)), (Some(5), 0));
        assert_eq!(of(Some(77)), (None, 1));
        assert_eq!(of(None), (None, 1));
        // A group of that number in another session is another one.
        assert_eq!(of(Some(5)), (None, 1));
    }

    #[test]
    fn what_does_not_come_back_is_named_once() {
        let told = |had: &[Had], own, files: &[OpenFile], words: &[&str]| {
            let plan = plan_of(had, own, files);
            assert!(plan.all.is_empty() && plan.notes.len() == 1, "{plan:?}");
            for word in words {
                assert!(plan.notes[0].contains(word), "{word}: {plan:?}");
            }
        };
        let files = files();
        let shell = had(Some(12));
        told(
            &shell,
            0,
            &files[2..],
            &["process 11", "/dev/pts/3", "outside of the tree"],
        );
        told(
            &shell,
            0,
            &files[1..2],
            &["no process of the tree has it open"],
        );
        let mut console = shell.clone();
        console[1].terminal = 0x0401;
        told(&console, 0, &files, &["4:1", "no pseudo-terminal"]);
        let mut outside = vec![Had::default(); 5];
        outside[0].terminal = PTS_3;
        told(
            &outside,
            0x8804,
            &files,
            &["process 10", "/dev/pts/3", "/dev/pts/4"],
        );
        told(
            &outside,
            0,
            &files,
            &["process 10", "no controlling terminal"],
        );
        outside[0].terminal = 0;
        assert_eq!(plan_of(&outside, 0, &files), Terminals::default());
    }

    #[test]
    fn a_master_that_is_replaced_is_none() {
        let (kin, files) = (kin(), files());
        let mut sources = vec![Source::Make; files.len()];
        sources[1] = Source::Own(0);
        let births = births(&kin, 5);
        let plan = terminals(&kin, &births, &had(Some(12)), 0, &files, &sources);
        assert!(
            plan.all.is_empty() && plan.notes[0].contains("another file"),
            "{plan:?}"
        );
    }
}
