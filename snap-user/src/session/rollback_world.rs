//! The world that a plan for a live process depends on.

use crate::model::{Backing, Socket, Vma};
use crate::restore::{TimerIds, World, can_start_thread, files};
use crate::sys::chooses_timer_ids;
use std::os::unix::fs::MetadataExt;

/// The world that a plan for a live process depends on.
pub(super) struct Live {
    pub(super) pid: i32,
}

impl World for Live {
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String> {
        let Backing::File {
            path,
            deleted,
            dev,
            inode,
            ..
        } = &vma.backing
        else {
            return Ok(());
        };
        if *deleted {
            return Err("it has no name any more by which it could be opened".into());
        }
        let here = format!("/proc/{}/root{path}", self.pid);
        let meta = std::fs::metadata(here).map_err(|e| format!("it cannot be opened ({e})"))?;
        let device = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        match (device, meta.ino()) == (*dev, *inode) {
            true => Ok(()),
            false => Err("another file has its name now".into()),
        }
    }

    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String> {
        can_start_thread(tid, Some(self.pid))
    }

    fn timer_ids(&self) -> TimerIds {
        match chooses_timer_ids() {
            true => TimerIds::Chosen,
            false => TimerIds::CountedOn,
        }
    }
}

impl Live {
    fn system(&self) -> files::System<'static> {
        files::System {
            pid: self.pid,
            entered: None,
        }
    }
}

impl files::FileWorld for Live {
    fn look(&self, path: &str) -> std::result::Result<files::Look, String> {
        self.system().look(path)
    }

    fn process(&self, pid: i32) -> Option<u64> {
        self.system().process(pid)
    }

    fn pipe(&self, identity: (u64, u64)) -> Option<String> {
        self.system().pipe(identity)
    }

    fn connections(&self, all: &[(&Socket, u64)]) -> Vec<std::result::Result<(), String>> {
        self.system().connections(all)
    }
}
