//! Contents of files in a snapshot: read ahead of the stop, and what has changed since inside it.

use super::engine::Engine;
use super::pipeline::Hashes;
use crate::capture::{Stamps, saved_ranges};
use crate::model::ProcessState;

impl Engine {
    /// Reads what files hold while the process runs, so that little is left for the stop.
    pub(super) fn save_ahead(&mut self, stamps: &mut Stamps, now: &mut Hashes) {
        let (pipeline, files) = (&mut self.pipeline, &self.live.files);
        let pid = self.target.pid;
        // What could not be read is told in the stop.
        let (ahead, _) = self
            .contents
            .read(pid, files.open_files(), stamps, |addr, page, hash| {
                if now.get(addr) != Some(hash) {
                    now.insert(addr, hash);
                    pipeline.put(addr, page, hash);
                }
            });
        // So that what is closed or cut short until the stop is taken out again.
        self.covered = self.covered.union(&saved_ranges(&ahead));
    }

    /// Reads what files hold that have changed since, in the stop.
    pub(super) fn save_files(
        &mut self,
        state: &mut ProcessState,
        stamps: &mut Stamps,
        now: &mut Hashes,
    ) {
        let pipeline = &mut self.pipeline;
        let pid = self.target.pid;
        let (saved, failed) =
            self.contents
                .read(pid, state.open_files(), stamps, |addr, page, hash| {
                    if now.get(addr) != Some(hash) {
                        now.insert(addr, hash);
                        pipeline.put(addr, page, hash);
                    }
                });
        state.saved = saved;
        state.unsupported.extend(failed);
    }
}
