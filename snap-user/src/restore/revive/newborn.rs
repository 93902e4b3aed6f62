//! The order in which a new process becomes what a snapshot says.

use super::attributes;
use super::plan::NewPlan;
use super::release;
use super::space::{self, Sources};
use super::threads;
use crate::model::{MmFields, ProcessState, SavedFile};
use crate::restore::files::{FilesPlan, Made, SavedContents};
use crate::restore::{RestoreError, Result, fault, files, waits};
use crate::sys::{
    self, Birth, Gadgets, Guard, Lacking, Lazy, Released, Stub, StubCall, SysError, proc,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

/// What the new process inherits from ksnap, opened before it is started.
#[derive(Debug, Default)]
pub struct Opened {
    /// For each of [`NewPlan::files_to_open`].
    pub files: Vec<Arc<OwnedFd>>,
    /// For each of [`NewPlan::objects`] that is a memfd, or that several processes share.
    pub objects: Vec<Option<Arc<OwnedFd>>>,
    /// The executable.
    pub exe: Option<Arc<OwnedFd>>,
    /// What its open files are to be made differently from.
    pub options: files::Options,
    /// Contents of its files that are to be put back.
    pub contents: Arc<SavedContents>,
}

/// A new process on its way: stopped, and killed when this is dropped.
#[derive(Debug)]
pub struct Newborn {
    pub(super) stub: Stub,
    pub(super) pid: i32,
    /// Some of its memory comes later.
    pub(super) is_lazy: bool,
    /// For whoever is to fill that, unless process 1 of its namespace does.
    pub(super) lacking: Option<Lacking>,
    pub(super) notes: Vec<String>,
}

impl Newborn {
    /// Starts the process and makes its mappings, as yet without content.
    ///
    /// # Errors
    /// [`RestoreError::Unborn`]; nothing is left of the process then.
    pub fn start(
        birth: Birth<'_>,
        plan: &NewPlan,
        opened: &Opened,
        lazy: &[Arc<Lazy>],
        pid: i32,
    ) -> Result<Self> {
        let mut step = "starting a process";
        let mut run = || -> sys::Result<Stub> {
            let mut stub = Stub::start(birth, &plan.space(), lazy)?;
            if birth.network {
                step = "making its network";
                stub.bring_up_loopback()?;
            }
            Ok(stub)
        };
        let stub = run().map_err(|source| RestoreError::Unborn { pid, step, source })?;
        Self::adopt(stub, plan, opened, pid)
    }

    /// Makes the mappings of a process that was started and is nobody yet, as yet without content.
    ///
    /// # Errors
    /// [`RestoreError::Unborn`]; nothing is left of the process then.
    pub fn adopt(mut stub: Stub, plan: &NewPlan, opened: &Opened, pid: i32) -> Result<Self> {
        let unborn = |source| RestoreError::Unborn {
            pid,
            step: "making its mappings",
            source,
        };
        let mut notes = attributes::lift_limits(&stub, &plan.limits).map_err(unborn)?;
        fault::point("making its mappings");
        let sources = Sources {
            files: opened.files.iter().map(AsRawFd::as_raw_fd).collect(),
            objects: opened
                .objects
                .iter()
                .map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd))
                .collect(),
        };
        let kernel = stub.kernel_mappings().to_vec();
        stub.run(&space::make(plan, &sources, &kernel))
            .and_then(|_| stub.run(&space::advise(plan)))
            .and_then(|_| match &plan.former {
                Some((range, code)) => sys::write_ranges(stub.pid(), &[*range], code),
                None => Ok(()),
            })
            .map_err(unborn)?;
        if !stub.has_right_proc() {
            notes.push(
                "its /proc has other ids than its own: a new one could not be mounted".to_owned(),
            );
        }
        Ok(Self {
            stub,
            pid,
            is_lazy: false,
            lacking: None,
            notes,
        })
    }

    /// Its id in ksnap's PID namespace, by which its memory is filled.
    pub fn pid(&self) -> i32 {
        self.stub.pid()
    }

    /// Process 1 of the namespace that was made for it, and for its children.
    pub fn init(&self) -> Option<i32> {
        self.stub.init()
    }

    /// Has its memory filled as it is touched, by process `init` of its namespace if it has one of its own. `false` when
    /// that is not allowed here: nothing has changed then.
    pub fn load_lazily(&mut self, lazy: &Arc<Lazy>, init: Option<i32>) -> Result<bool> {
        match self.stub.load_lazily(lazy, init) {
            Ok(lacking) => {
                self.is_lazy = true;
                self.lacking = lacking;
                Ok(true)
            }
            Err(e) if e.is_denied() => Ok(false),
            Err(source) => Err(RestoreError::Unborn {
                pid: self.pid,
                step: "preparing to fill its memory",
                source,
            }),
        }
    }

    /// Everything else, once its memory is filled; then it runs. `keep_ids`: its threads have the
    /// snapshot's ids. Returns what will differ, a sentence each.
    ///
    /// # Errors
    /// [`RestoreError::Unborn`]; nothing is left of the process then.
    pub fn finish(
        mut self,
        target: &ProcessState,
        plan: &NewPlan,
        opened: &Opened,
        keep_ids: bool,
    ) -> Result<(Released, Vec<String>)> {
        let pid = self.pid;
        let mut step = "making it";
        let outcome = self.complete(target, plan, opened, keep_ids, &mut step);
        let guard = outcome.map_err(|source| RestoreError::Unborn { pid, step, source })?;
        fault::point("letting it go");
        let Self { stub, notes, .. } = self;
        let release = || {
            let mut released = stub.release()?;
            released.loading = guard.map_or(Ok(None), Guard::dismiss)?;
            Ok((released, notes))
        };
        release().map_err(|source| RestoreError::Unborn {
            pid,
            step: "letting it go",
            source,
        })
    }

    fn complete(
        &mut self,
        target: &ProcessState,
        plan: &NewPlan,
        opened: &Opened,
        keep_ids: bool,
        step: &mut &'static str,
    ) -> sys::Result<Option<Guard>> {
        release::begin_filling(std::slice::from_mut(self), step)?;
        self.prepare(target, plan, opened, keep_ids, step)?;
        let guard = release::watch_over(std::slice::from_mut(self), step)?;
        *step = "opening its files";
        fault::point(step);
        let files = &plan.files;
        let nothing = ProcessState::default();
        let options = files::Options {
            pids: self.ids(target).collect(),
            ..opened.options.clone()
        };
        let stub = &self.stub;
        let (pid, pidfd) = (stub.pid(), stub.pidfd());
        let made = files::make(files, target, &[(pid, pidfd.as_fd())], &options)?;
        let mut remote = stub.remote(0, stub.insn())?;
        made.install(&mut remote, pid, pidfd, files)?;
        drop(remote);
        *step = "writing the contents of its files";
        fault::point(step);
        self.write_back(target, opened)?;
        *step = "setting what its files hold";
        fault::point(step);
        let mut remote = self.stub.remote(0, self.stub.insn())?;
        let notes = made.settle(&mut remote, self.stub.pid(), files, target, &nothing)?;
        drop(remote);
        self.notes.extend(made.notes.iter().cloned().chain(notes));
        *step = "setting its attributes";
        fault::point(step);
        attributes::begin_session(&mut self.stub, target)?;
        self.become_itself(target, plan, step)?;
        *step = "going on with its connections";
        fault::point(step);
        let notes = made.go_on(self.stub.pid(), target)?;
        self.notes.extend(notes);
        Ok(guard)
    }

    /// Its ids, and those of its threads: as they were, and as they are in ksnap's PID namespace.
    pub(super) fn ids(&self, target: &ProcessState) -> impl Iterator<Item = (i32, i32)> {
        let now = self.stub.threads().iter();
        target
            .threads
            .iter()
            .zip(now)
            .map(|(t, now)| (t.tid, now.tid))
    }

    /// Everything before its files: memory, threads. What it has inherited has served its purpose then.
    pub(in crate::restore) fn prepare(
        &mut self,
        target: &ProcessState,
        plan: &NewPlan,
        opened: &Opened,
        keep_ids: bool,
        step: &mut &'static str,
    ) -> sys::Result<()> {
        *step = "finishing its mappings";
        self.finish_mappings(plan)?;
        *step = "setting the bounds of its memory";
        fault::point(step);
        self.set_mm(target, opened)?;
        *step = "making its threads";
        fault::point(step);
        let stub = &mut self.stub;
        threads::make(stub, target, keep_ids)?;
        *step = "closing what it has inherited";
        stub.run(&[StubCall::new(
            "close_range",
            "what it has inherited",
            libc::SYS_close_range,
            [0, u32::MAX.into(), 0, 0, 0, 0],
        )])
        .map(drop)
    }

    /// Its descriptors, among several processes.
    pub(in crate::restore) fn install(&mut self, made: &Made, plan: &FilesPlan) -> sys::Result<()> {
        let stub = &self.stub;
        let mut remote = stub.remote(0, stub.insn())?;
        made.install(&mut remote, stub.pid(), stub.pidfd(), plan)
    }

    /// What it has to do itself for its open files, among several processes: `wanted` has the files of all, `own` its own.
    pub(in crate::restore) fn settle(
        &mut self,
        made: &Made,
        plan: &FilesPlan,
        (wanted, own): (&ProcessState, &ProcessState),
    ) -> sys::Result<()> {
        let stub = &self.stub;
        let mut remote = stub.remote(0, stub.insn())?;
        let notes = made.settle_process(&mut remote, stub.pid(), plan, wanted, own)?;
        drop(remote);
        self.notes.extend(notes);
        Ok(())
    }

    /// Writes the contents of files that have been saved.
    pub(in crate::restore) fn write_back(
        &mut self,
        target: &ProcessState,
        opened: &Opened,
    ) -> sys::Result<()> {
        let changed = &opened.contents.changed;
        files::write_back(self.stub.pid(), target, changed, &opened.contents.content)?;
        let back = |saved: &SavedFile| format!("the content of {} has been put back", saved.path);
        self.notes.extend(changed.iter().map(back));
        Ok(())
    }

    /// Everything behind its files: attributes, registers. It is ready to run then.
    pub(in crate::restore) fn become_itself(
        &mut self,
        target: &ProcessState,
        plan: &NewPlan,
        step: &mut &'static str,
    ) -> sys::Result<()> {
        *step = "setting its attributes";
        let notes = attributes::apply(&mut self.stub, &plan.attributes, target)?;
        self.notes.extend(notes);
        let stub = &mut self.stub;
        *step = "taking out what is not its own";
        fault::point(step);
        let signal = target.threads[0].attributes.parent_death_signal;
        let signal = signal.unwrap_or(0);
        stub.run(&[StubCall::new(
            "prctl",
            "the signal of its parent's death",
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG as u64, signal as u64, 0, 0, 0, 0],
        )])?;
        let insn = own_syscall(stub)?;
        stub.remove_area(insn)?;
        *step = "setting its threads";
        fault::point(step);
        threads::queue_all(stub, target, insn)?;
        let remote = |n| stub.remote(n, insn);
        let waits = waits::begin_all(stub.pid(), &target.threads, remote, &mut self.notes)?;
        // Every call of its own that is left would be measured against them.
        let notes = attributes::set_limits(stub, &plan.limits, insn)?;
        self.notes.extend(notes);
        threads::set(&self.stub, target, &waits)
    }

    fn finish_mappings(&mut self, plan: &NewPlan) -> sys::Result<()> {
        const SET_VMA: u64 = 0x5356_4d41;
        const ANON_NAME: u64 = 0;
        let stub = &mut self.stub;
        let calls = space::finish(plan);
        let results = stub.run(&calls)?;
        for (call, result) in calls.iter().zip(results) {
            if result < 0 {
                let why = io::Error::from_raw_os_error(-result as i32);
                self.notes
                    .push(format!("mapping {}: {}: {why}", call.target, call.name));
            }
        }
        let named: Vec<_> = space::names(plan).collect();
        for some in named.chunks(512) {
            let mut calls = Vec::new();
            for (range, name) in some {
                let name = stub.put(&[name.as_bytes(), b"\0"].concat())?;
                let args = [SET_VMA, ANON_NAME, range.start, range.len(), name, 0];
                // Kernels without CONFIG_ANON_VMA_NAME have no names to lose.
                calls.push(
                    StubCall::new("prctl", range.to_string(), libc::SYS_prctl, args).or_not(),
                );
            }
            stub.run(&calls)?;
            stub.forget();
        }
        Ok(())
    }

    /// Bounds of the memory, auxiliary vector and executable (`PR_SET_MM_MAP` in prctl(2)).
    fn set_mm(&mut self, target: &ProcessState, opened: &Opened) -> sys::Result<()> {
        let auxv: Vec<u8> = target
            .auxv
            .iter()
            .flat_map(|(kind, value)| [*kind, *value])
            .chain([0, 0])
            .flat_map(u64::to_le_bytes)
            .collect();
        let at = self.stub.put(&auxv)?;
        let mut exe = opened.exe.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        loop {
            let map = mm_map(&target.mm, (at, auxv.len() as u32), exe);
            let place = self.stub.put(&map)?;
            const MAP: u64 = 14;
            let args = [libc::PR_SET_MM as u64, MAP, place, map.len() as u64, 0, 0];
            let call = StubCall::new("prctl(PR_SET_MM_MAP)", "its memory", libc::SYS_prctl, args);
            match self.stub.run(&[call]) {
                Err(e) if e.is_denied() && exe >= 0 => {
                    self.notes.push(format!(
                        "/proc/PID/exe does not lead to {}: that needs CAP_CHECKPOINT_RESTORE",
                        target.exe
                    ));
                    exe = -1;
                }
                Err(e) => return Err(e),
                Ok(_) => break,
            }
        }
        self.stub.forget();
        Ok(())
    }
}

/// `struct prctl_mm_map` (include/uapi/linux/prctl.h).
fn mm_map(mm: &MmFields, (auxv, auxv_len): (u64, u32), exe: i32) -> Vec<u8> {
    let words = [
        mm.start_code,
        mm.end_code,
        mm.start_data,
        mm.end_data,
        mm.start_brk,
        mm.brk,
        mm.start_stack,
        mm.arg_start,
        mm.arg_end,
        mm.env_start,
        mm.env_end,
        auxv,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    bytes.extend_from_slice(&auxv_len.to_le_bytes());
    bytes.extend_from_slice(&exe.to_le_bytes());
    bytes
}

/// A system call instruction that stays when the stub's area goes.
fn own_syscall(stub: &Stub) -> sys::Result<u64> {
    let mut maps = proc::maps(stub.pid())?;
    maps.retain(|v| !v.range.contains(stub.insn()));
    Gadgets::find_syscall(stub.pid(), &maps)?.ok_or_else(|| {
        SysError::new(
            "look for a system call instruction",
            format_args!("the code of process {}", stub.pid()),
            io::Error::other("it has none"),
        )
    })
}
