//! The loaded probes: what to track, what happened, what it cost.

use super::error::ProbeError;
use super::event::{self, Event};
use super::load::{self, Loaded, ProbeOptions};
use super::marks::Marks;
use super::programs::{self, FaultSource, Link, chain};
use super::saver::{Losses, Saved, Saver, Window};
use super::state::StateReader;
use crate::model::{Observed, Referent};
use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::ProgramError;
use aya::sys::{Stats, enable_stats};
use aya_log::EbpfLogger;
use snap_common::Tracked;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tracing_log::log;

/// What one call of [`Probes::drain`] brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Events handed over.
    pub events: u64,
    /// Events lost since the probes were loaded. When this grew, only a full scan and a fresh look
    /// at mappings, threads and children tell what happened.
    pub drops_total: u64,
}

/// What the kernel counted for one program, while statistics were on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramStats {
    /// Name of the program: the hook it is on.
    pub name: &'static str,
    /// The kernel's id of it, as `bpftool prog` shows it.
    pub id: u32,
    /// How often it ran, for whatever process.
    pub run_count: u64,
    /// Time it ran, in total.
    pub run_time: Duration,
}

/// The eBPF programs, loaded. They are attached only while something is tracked.
pub struct Probes {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    events: RingBuf<MapData>,
    tracked: HashMap<MapData, u32, Tracked>,
    saver: Saver,
    drops: PerCpuArray<MapData, u64>,
    /// What is tracked, as far as the events drained so far tell.
    targets: BTreeSet<u32>,
    links: Vec<Link>,
    programs: Vec<&'static str>,
    fault_source: FaultSource,
    sees_gup_writes: bool,
    sees_page_locks: bool,
    times_stops: bool,
    state: Option<StateReader>,
    malformed: u64,
    drops_seen: u64,
    statistics: Option<OwnedFd>,
}

impl Probes {
    /// Loads the programs. Nothing is attached, and nobody pays for them, until [`Self::track`].
    ///
    /// # Errors
    /// Each variant of [`ProbeError`] says what to do; ksnap works without the probes.
    pub fn load(options: &ProbeOptions) -> Result<Self, ProbeError> {
        Self::new(load::load(options)?)
    }

    pub(super) fn new(loaded: Loaded) -> Result<Self, ProbeError> {
        let Loaded {
            mut ebpf,
            logger,
            fault_source,
            stop_times,
            has_mm_owner,
            page_lock,
            state,
            programs,
            ..
        } = loaded;
        let events = RingBuf::try_from(take(&mut ebpf, "EVENTS")?).map_err(map_error("EVENTS"))?;
        let tracked =
            HashMap::try_from(take(&mut ebpf, "TRACKED")?).map_err(map_error("TRACKED"))?;
        let drops = PerCpuArray::try_from(take(&mut ebpf, "DROPS")?).map_err(map_error("DROPS"))?;
        Ok(Self {
            logger,
            saver: Saver::new(&mut ebpf)?,
            ebpf,
            events,
            tracked,
            drops,
            targets: BTreeSet::new(),
            links: Vec::new(),
            programs,
            fault_source,
            sees_gup_writes: fault_source == FaultSource::HandleMmFault && has_mm_owner,
            sees_page_locks: page_lock.is_ok(),
            times_stops: stop_times.is_ok(),
            state: state
                .inspect_err(|error| tracing::debug!("no reading of kernel state: {error}"))
                .ok(),
            malformed: 0,
            drops_seen: 0,
            statistics: None,
        })
    }

    /// Tracks a process, and every process that it forks from now on. Attaches the programs when
    /// this is the first. When it returns, every later write fault is seen.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the programs cannot be attached or the map is full.
    pub fn track(&mut self, tgid: u32) -> Result<(), ProbeError> {
        if self.links.is_empty() {
            let mut links = Vec::with_capacity(self.programs.len());
            for name in &self.programs {
                links.push(programs::attach(&mut self.ebpf, name)?);
            }
            self.links = links;
        }
        self.tracked
            .insert(tgid, Tracked::default(), 0)
            .map_err(map_error("TRACKED"))?;
        self.targets.insert(tgid);
        Ok(())
    }

    /// Stops tracking a process; its children go on being tracked. Detaches the programs when it
    /// was the last. Unknown processes are ignored.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel refuses to change the map.
    pub fn untrack(&mut self, tgid: u32) -> Result<(), ProbeError> {
        match self.tracked.remove(&tgid) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(map_error("TRACKED")(error)),
        }
        self.saver.close(&mut self.tracked, tgid)?;
        self.targets.remove(&tgid);
        if let Some(state) = &mut self.state {
            state.forget(tgid as i32);
        }
        self.detach_when_idle();
        Ok(())
    }

    /// From now on the first write to each of these pages of a tracked process has the page saved before. One
    /// window at a time for a process. `heap_end`: where its heap ends, if that is known.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel refuses to change a map.
    pub fn open_window(
        &mut self,
        tgid: u32,
        pages: &Marks,
        heap_end: Option<u64>,
    ) -> Result<Window, ProbeError> {
        self.saver.open(&mut self.tracked, tgid, pages, heap_end)
    }

    /// Pages below `addr` need not be saved any more.
    ///
    /// # Errors
    /// Those of [`Self::open_window`].
    pub fn copied_to(&mut self, tgid: u32, window: Window, addr: u64) -> Result<(), ProbeError> {
        Saver::copied_to(&mut self.tracked, tgid, window, addr)
    }

    /// No more pages are saved.
    ///
    /// # Errors
    /// Those of [`Self::open_window`].
    pub fn close_window(&mut self, tgid: u32) -> Result<(), ProbeError> {
        self.saver.close(&mut self.tracked, tgid)
    }

    /// Hands over what was saved since the last call. `true` when nothing is under way any more.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel does not tell.
    pub fn drain_saved(&mut self, handle: impl FnMut(Saved<'_>)) -> Result<bool, ProbeError> {
        self.saver.drain(handle);
        self.saver.is_drained()
    }

    /// Pages of whatever process that could not be saved, since the probes were loaded.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel does not tell.
    pub fn saved_lost(&self) -> Result<u64, ProbeError> {
        self.saver.lost()
    }

    /// The same by reason.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel does not tell.
    pub fn losses(&self) -> Result<Losses, ProbeError> {
        self.saver.losses()
    }

    /// The processes tracked now, the children that forks added included.
    pub fn tracked(&self) -> impl Iterator<Item = u32> + '_ {
        self.targets.iter().copied()
    }

    /// True while the programs are attached.
    pub fn is_attached(&self) -> bool {
        !self.links.is_empty()
    }

    /// Hands over every event since the last call. Events of one thread come in their order.
    /// Costs one system call and no wait; meant to be called many times a second.
    pub fn drain(&mut self, mut handle: impl FnMut(&Event)) -> Drained {
        let mut events = 0;
        while let Some(item) = self.events.next() {
            let event = match event::decode(&item) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(event::Malformed) => {
                    self.malformed += 1;
                    continue;
                }
            };
            match event {
                Event::Fork { child, .. } => {
                    self.targets.insert(child);
                }
                Event::Exit {
                    tgid, last: true, ..
                } => {
                    self.targets.remove(&tgid);
                }
                _ => {}
            }
            handle(&event);
            events += 1;
        }
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let drops_total = self.drops_total();
        if drops_total != self.drops_seen {
            self.drops_seen = drops_total;
            // A fork or an exit may be among the lost.
            self.targets = self.tracked.keys().filter_map(Result::ok).collect();
        }
        self.detach_when_idle();
        Drained {
            events,
            drops_total,
        }
    }

    fn drops_total(&self) -> u64 {
        match self.drops.get(&0, 0) {
            Ok(per_cpu) => per_cpu.iter().sum::<u64>() + self.malformed,
            // A count that cannot be read must look like a loss.
            Err(error) => {
                tracing::warn!("cannot read how many events were lost: {}", chain(&error));
                self.drops_seen + 1
            }
        }
    }

    fn detach_when_idle(&mut self) {
        if self.targets.is_empty() && !self.links.is_empty() {
            // A child may have been added whose fork event was not drained yet.
            self.targets = self.tracked.keys().filter_map(Result::ok).collect();
            if self.targets.is_empty() {
                self.links.clear();
            }
        }
    }

    /// Where write faults are seen.
    pub fn fault_source(&self) -> FaultSource {
        self.fault_source
    }

    /// True when pages written through get_user_pages have fault events too. Else a
    /// [`Event::Hazard`] is all that tells of them.
    pub fn sees_gup_writes(&self) -> bool {
        self.sees_gup_writes
    }

    /// True when get_user_pages is announced by [`super::HazardKind::PageLock`], before it writes.
    pub fn sees_page_locks(&self) -> bool {
        self.sees_page_locks
    }

    /// True when [`Event::Stopped`] events come.
    pub fn times_stops(&self) -> bool {
        self.times_stops
    }

    /// True when [`Self::observe`] works.
    pub fn observes(&self) -> bool {
        self.state.is_some()
    }

    /// What the kernel knows of a stopped process, of which `tid` is a thread that lives: signal
    /// dispositions, timers, credentials, and what else no file of /proc shows. Some microseconds a thread.
    ///
    /// # Errors
    /// [`ProbeError::KernelLacks`] where the kernel cannot be asked.
    pub fn observe(&mut self, pid: i32, tid: i32) -> Result<Observed, ProbeError> {
        let reader = self.state.as_mut().ok_or_else(|| ProbeError::KernelLacks {
            what: "iterators over tasks".to_owned(),
            detail: "the program was refused when it was loaded".to_owned(),
            remedy: "ksnap has the process itself tell its state by injected system calls",
        })?;
        reader.read(pid, tid)
    }

    /// What the descriptors of a process refer to, ascending by number. `None` where the kernel cannot be asked about
    /// it. A fraction of a microsecond for each.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] where what it says makes no sense.
    pub fn referents(&mut self, pid: i32) -> Result<Option<Vec<(i32, Referent)>>, ProbeError> {
        self.state
            .as_mut()
            .map_or(Ok(None), |state| state.referents(pid))
    }

    /// Turns the kernel's run-time statistics of BPF programs on, or off again unless someone else
    /// wants them. Counting costs each run of any program some tens of ns.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel refuses (before 5.8).
    pub fn count_costs(&mut self, on: bool) -> Result<(), ProbeError> {
        if on && self.statistics.is_none() {
            let fd = enable_stats(Stats::RunTime).map_err(|error| ProbeError::Kernel {
                call: "bpf(BPF_ENABLE_STATS)",
                target: "the run-time statistics".to_owned(),
                detail: chain(&error),
            })?;
            self.statistics = Some(fd);
        } else if !on {
            self.statistics = None;
        }
        Ok(())
    }

    /// How often each program ran and for how long, while statistics were on.
    ///
    /// # Errors
    /// [`ProbeError::Kernel`] when the kernel does not tell.
    pub fn program_stats(&self) -> Result<Vec<ProgramStats>, ProbeError> {
        let stats = |name: &'static str| -> Result<ProgramStats, ProgramError> {
            let program = self.ebpf.program(name).ok_or(ProgramError::NotLoaded)?;
            let info = program.info()?;
            Ok(ProgramStats {
                name,
                id: info.id(),
                run_count: info.run_count(),
                run_time: info.run_time(),
            })
        };
        self.programs
            .iter()
            .map(|name| {
                stats(name).map_err(|error| ProbeError::Kernel {
                    call: "bpf(BPF_OBJ_GET_INFO_BY_FD)",
                    target: (*name).to_owned(),
                    detail: chain(&error),
                })
            })
            .collect()
    }
}

pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map, ProbeError> {
    ebpf.take_map(name).ok_or_else(|| ProbeError::BadObject {
        detail: format!("it has no map {name}"),
    })
}

pub(super) fn map_error(name: &'static str) -> impl FnOnce(MapError) -> ProbeError {
    move |error| ProbeError::Kernel {
        call: "bpf() on a map",
        target: name.to_owned(),
        detail: chain(&error),
    }
}
