//! What a new process needs to be what a snapshot says. Pure.

use super::vdso::{self, OtherKernel};
use crate::model::{Backing, PAGE_SIZE, PageRange, ProcessState, Vma};
use crate::restore::files::FilesPlan;
use crate::restore::state::{LimitsPlan, StatePlan};
use crate::restore::{RestoreError, Result};
use std::collections::BTreeMap;

/// Lowest address for memory that is mapped for a moment.
const LOWEST: u64 = 0x100_0000;

/// What stands behind a mapping of the new process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Private memory, zero until it is filled.
    Anonymous,
    /// A file, by its place in [`NewPlan::files_to_open`].
    File(usize),
    /// Memory that several mappings may share, by its place in [`NewPlan::objects`], from this byte on.
    Shared(usize, u64),
    /// A segment of System V shared memory that is still there, by its id.
    Segment(i32),
    /// What the kernel provides under this name.
    Kernel(String),
    /// Code of the kernel that the snapshot was taken under: [`NewPlan::former`].
    Former,
}

/// One mapping to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMapping {
    /// As the snapshot has it.
    pub vma: Vma,
    /// What stands behind it.
    pub origin: Origin,
}

/// A file to be opened for a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileToOpen {
    /// Its path.
    pub path: String,
    /// Pages written through the mapping go to the file.
    pub write: bool,
}

/// Memory that mappings share: without a file, or with one that has no name any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryObject {
    /// Name of a memfd; `None` for shared anonymous memory.
    pub memfd: Option<String>,
    /// Length in bytes, as far as the mappings tell.
    pub len: u64,
    /// Device and inode that it had.
    pub identity: (u64, u64),
    /// It was a segment of System V shared memory, whose id is the inode (shmget(2)).
    pub is_system_v: bool,
    /// Where it is mapped as a whole for a moment, to be shared out from there.
    pub scratch: PageRange,
}

/// A new process: its mappings and what they need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewPlan {
    /// Mappings, ascending.
    pub mappings: Vec<NewMapping>,
    /// Files behind them.
    pub files_to_open: Vec<FileToOpen>,
    /// Shared memory behind them.
    pub objects: Vec<MemoryObject>,
    /// Where the code of another kernel goes that the process remembers, and what it is now.
    pub former: Option<(PageRange, Vec<u8>)>,
    /// Descriptors and open files.
    pub files: FilesPlan,
    /// What is neither memory nor a descriptor.
    pub attributes: StatePlan,
    /// Resource limits, which come before and after all else.
    pub limits: LimitsPlan,
    /// What will differ, a sentence each.
    pub notes: Vec<String>,
}

impl NewPlan {
    /// Address space that must be free in the new process: its own, and what is used for a moment.
    pub fn space(&self) -> Vec<PageRange> {
        let mapped = self.mappings.iter().map(|m| m.vma.range);
        mapped
            .chain(self.objects.iter().map(|o| o.scratch))
            .collect()
    }
}

/// What of the machine a new process depends on.
pub trait Surroundings {
    /// Whether what stands behind a mapping can be mapped again, or why not.
    fn can_map(&self, vma: &Vma) -> std::result::Result<(), String>;
    /// The segment of System V shared memory behind a mapping of one, if it is still there: its id.
    fn segment(&self, vma: &Vma) -> Option<i32>;
    /// Whether a thread with this id can be made, or why not.
    fn can_start_thread(&self, tid: i32) -> std::result::Result<(), String>;
    /// The kernel here, if it is another one than the snapshot's, and the snapshot has what it takes to go on under it.
    fn other_kernel(&self) -> Option<&OtherKernel>;
}

/// Plans a new process.
///
/// # Errors
/// [`RestoreError::Refused`] with everything that cannot be brought back.
pub fn plan(target: &ProcessState, world: &dyn Surroundings) -> Result<NewPlan> {
    let mut plan = NewPlan::default();
    let mut reasons = Vec::new();
    let mut files = BTreeMap::new();
    let other_kernel = world.other_kernel();
    for thread in &target.threads {
        if let Err(why) = world.can_start_thread(thread.own_id()) {
            reasons.push(format!("thread {}: {why}", thread.own_id()));
        }
    }
    if target.threads.first().is_none_or(|t| t.tid != target.pid) {
        reasons.push("its first thread has ended and only others went on: the kernel offers no way to make such a process".to_owned());
    }
    for vma in &target.vmas {
        let origin = match &vma.backing {
            Backing::Anonymous { .. } | Backing::Heap | Backing::Stack if vma.shared => {
                reasons.push(format!(
                    "mapping {}: shared memory without an object behind it",
                    vma.range
                ));
                continue;
            }
            Backing::Anonymous { .. } | Backing::Heap | Backing::Stack => Origin::Anonymous,
            // In every process, at an address of the kernel's.
            Backing::Special(name) if name == "vsyscall" => continue,
            Backing::Special(_) if other_kernel.is_some() && vma.kernel_part().is_some() => {
                match vma.is_vdso() {
                    true => Origin::Former,
                    // The data that its code read.
                    false => Origin::Anonymous,
                }
            }
            Backing::Special(name) => match world.can_map(vma) {
                Ok(()) => Origin::Kernel(name.clone()),
                Err(why) => {
                    reasons.push(format!("the kernel's [{name}] at {}: {why}", vma.range));
                    continue;
                }
            },
            Backing::File {
                path,
                deleted,
                dev,
                inode,
                offset,
            } => {
                let is_segment = vma.shared && path.starts_with("/SYSV");
                if let Some(id) = is_segment.then(|| world.segment(vma)).flatten() {
                    Origin::Segment(id)
                } else if vma.shared && is_memory(path, *deleted) {
                    let identity = (u64::from(dev.0) << 32 | u64::from(dev.1), *inode);
                    let at = object(&mut plan.objects, identity, path, offset + vma.range.len());
                    Origin::Shared(at, *offset)
                } else if *deleted && !is_object(path) {
                    // All of its content is in the snapshot.
                    plan.notes.push(format!(
                        "mapping {} of {path}, which has been deleted, is memory without a file now",
                        vma.range
                    ));
                    Origin::Anonymous
                } else if let Err(why) = world.can_map(vma) {
                    reasons.push(format!("mapping {} of {path}: {why}", vma.range));
                    continue;
                } else {
                    let write = vma.shared && vma.prot.write;
                    let next = plan.files_to_open.len();
                    let at = *files.entry((path.clone(), write)).or_insert(next);
                    if at == next {
                        plan.files_to_open.push(FileToOpen {
                            path: path.clone(),
                            write,
                        });
                    }
                    Origin::File(at)
                }
            }
        };
        plan.mappings.push(NewMapping {
            vma: vma.clone(),
            origin,
        });
    }
    for object in plan.objects.iter().filter(|o| o.is_system_v) {
        plan.notes.push(format!(
            "System V shared memory segment {} is memory of its own now, which no other process shares and shmdt(2) and shmctl(2) do not know",
            object.identity.1
        ));
    }
    if let Some(kernel) = other_kernel {
        vdso::lead_over(&mut plan, target, kernel, &mut reasons);
    }
    scratch(&mut plan, &mut reasons);
    match reasons.is_empty() {
        true => Ok(plan),
        false => Err(RestoreError::Refused {
            pid: target.pid,
            reasons,
        }),
    }
}

/// What no file was ever behind.
fn is_object(path: &str) -> bool {
    path.starts_with("anon_inode:") || path == "/[aio]"
}

/// Memory that only looks like a file, or whose file has no name any more.
fn is_memory(path: &str, deleted: bool) -> bool {
    deleted
        || ["/memfd:", "/dev/zero", "/SYSV"]
            .iter()
            .any(|prefix| path.starts_with(prefix))
}

/// The object with this identity, long enough.
fn object(objects: &mut Vec<MemoryObject>, identity: (u64, u64), path: &str, len: u64) -> usize {
    if let Some(at) = objects.iter().position(|o| o.identity == identity) {
        objects[at].len = objects[at].len.max(len);
        return at;
    }
    let anonymous = path.starts_with("/dev/zero") || path.starts_with("/SYSV");
    objects.push(MemoryObject {
        memfd: (!anonymous).then(|| {
            let name = path.strip_prefix("/memfd:");
            name.unwrap_or(path.rsplit('/').next().unwrap_or_default())
                .to_owned()
        }),
        len,
        identity,
        is_system_v: path.starts_with("/SYSV"),
        scratch: PageRange::new(0, 0),
    });
    objects.len() - 1
}

/// Finds address space for shared anonymous memory as a whole.
fn scratch(plan: &mut NewPlan, reasons: &mut Vec<String>) {
    let mut taken: Vec<PageRange> = plan.mappings.iter().map(|m| m.vma.range).collect();
    for object in plan.objects.iter_mut().filter(|o| o.memfd.is_none()) {
        taken.sort_unstable();
        let len = object.len.next_multiple_of(PAGE_SIZE);
        let mut at = LOWEST;
        for range in &taken {
            if range.start >= at + len {
                break;
            }
            at = at.max(range.end);
        }
        if at + len > crate::sys::arch::USER_END {
            reasons.push(format!(
                "no address space is left to share out {len} bytes of memory from"
            ));
            return;
        }
        object.scratch = PageRange::new(at, at + len);
        taken.push(object.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protection, ThreadState};

    struct Free;

    impl Surroundings for Free {
        fn other_kernel(&self) -> Option<&OtherKernel> {
            None
        }
        fn can_map(&self, _: &Vma) -> std::result::Result<(), String> {
            Ok(())
        }
        fn can_start_thread(&self, _: i32) -> std::result::Result<(), String> {
            Ok(())
        }
        fn segment(&self, vma: &Vma) -> Option<i32> {
            matches!(&vma.backing, Backing::File { inode: 6, .. }).then_some(6)
        }
    }

    struct Tight;

    impl Surroundings for Tight {
        fn other_kernel(&self) -> Option<&OtherKernel> {
            None
        }
        fn can_map(&self, _: &Vma) -> std::result::Result<(), String> {
            Err("it is another file now".into())
        }
        fn can_start_thread(&self, _: i32) -> std::result::Result<(), String> {
            Err("the id is taken".into())
        }
        fn segment(&self, _: &Vma) -> Option<i32> {
            None
        }
    }

    fn vma(start: u64, pages: u64, shared: bool, backing: Backing) -> Vma {
        Vma {
            range: PageRange::new(start, start + pages * PAGE_SIZE),
            prot: Protection {
                read: true,
                write: true,
                exec: false,
            },
            shared,
            backing,
            flags: Vec::new(),
            build_id: None,
        }
    }

    fn file(path: &str, inode: u64, offset: u64) -> Backing {
        Backing::File {
            path: path.into(),
            deleted: path.starts_with("/dev/zero"),
            dev: (0, 1),
            inode,
            offset,
        }
    }

    fn state(vmas: Vec<Vma>) -> ProcessState {
        ProcessState {
            pid: 10,
            threads: vec![ThreadState {
                tid: 10,
                ..Default::default()
            }],
            vmas,
            ..Default::default()
        }
    }

    #[test]
    fn mappings_of_one_object_share_it_and_get_room_beside_everything_else() {
        let state = state(vec![
            vma(LOWEST, 4, false, Backing::Anonymous { name: None }),
            vma(LOWEST + 0x10000, 2, true, file("/dev/zero", 7, 0)),
            vma(LOWEST + 0x20000, 2, true, file("/dev/zero", 7, 0x4000)),
            vma(LOWEST + 0x30000, 1, true, file("/memfd:ring", 8, 0)),
        ]);
        let plan = plan(&state, &Free).unwrap();
        assert_eq!(plan.objects.len(), 2);
        assert_eq!(plan.objects[0].len, 0x6000);
        assert_eq!(plan.objects[1].memfd.as_deref(), Some("ring"));
        assert_eq!(plan.mappings[2].origin, Origin::Shared(0, 0x4000));
        let scratch = plan.objects[0].scratch;
        assert_eq!(scratch.len(), 0x6000);
        let clash = |m: &NewMapping| m.vma.range.intersect(&scratch).is_some();
        assert!(!plan.mappings.iter().any(clash));
    }

    #[test]
    fn a_file_is_opened_once_for_each_way_of_using_it() {
        let state = state(vec![
            vma(0x1000, 1, false, file("/lib/x", 1, 0)),
            vma(0x3000, 1, false, file("/lib/x", 1, 0x2000)),
            vma(0x5000, 1, true, file("/lib/x", 1, 0)),
        ]);
        let plan = plan(&state, &Free).unwrap();
        let written: Vec<bool> = plan.files_to_open.iter().map(|f| f.write).collect();
        assert_eq!(written, [false, true]);
    }

    #[test]
    fn a_refusal_lists_everything() {
        let mut state = state(vec![vma(0x1000, 1, false, file("/lib/x", 1, 0))]);
        state.threads.push(ThreadState {
            tid: 11,
            ..Default::default()
        });
        let error = plan(&state, &Tight).unwrap_err().to_string();
        for part in [
            "thread 10",
            "thread 11",
            "the id is taken",
            "/lib/x",
            "another file",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_private_mapping_of_a_deleted_file_is_memory_and_so_is_a_segment_of_system_v() {
        let mut gone = file("/lib/old.so", 1, 0);
        if let Backing::File { deleted, .. } = &mut gone {
            *deleted = true;
        }
        let segment = vma(0x10_0000_0000, 1, true, file("/SYSV00000042", 5, 0));
        let there = vma(0x20_0000_0000, 1, true, file("/SYSV00000043", 6, 0));
        let state = state(vec![vma(0x1000, 1, false, gone), segment, there]);
        let plan = plan(&state, &Free).unwrap();
        assert_eq!(plan.mappings[0].origin, Origin::Anonymous);
        assert_eq!(plan.mappings[1].origin, Origin::Shared(0, 0));
        assert_eq!(plan.mappings[2].origin, Origin::Segment(6));
        let notes = plan.notes.join(" ");
        assert!(
            notes.contains("/lib/old.so") && notes.contains("segment 5"),
            "{notes}"
        );
    }
}
