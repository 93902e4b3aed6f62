//! The constants that the programs need from the running kernel.

use super::btf::KernelTypes;
use super::error::ProbeError;
use std::fs;

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Fields that the programs read, by the global that receives the offset.
const FIELDS: [(&str, &str); 14] = [
    ("OFF_TASK_TGID", "task_struct.tgid"),
    ("OFF_TASK_PID", "task_struct.pid"),
    ("OFF_TASK_MM", "task_struct.mm"),
    ("OFF_TASK_FILES", "task_struct.files"),
    ("OFF_TASK_SIGNAL", "task_struct.signal"),
    ("OFF_SIGNAL_LIVE", "signal_struct.live"),
    ("OFF_VMA_MM", "vm_area_struct.vm_mm"),
    ("OFF_FILES_FDT", "files_struct.fdt"),
    ("OFF_FDT_MAX", "fdtable.max_fds"),
    ("OFF_FDT_FD", "fdtable.fd"),
    ("OFF_FILE_FLAGS", "file.f_flags"),
    ("OFF_FILE_INODE", "file.f_inode"),
    ("OFF_FILE_OPERATIONS", "file.f_op"),
    ("OFF_INODE_NUMBER", "inode.i_ino"),
];

/// Globals for what is found in `pt_regs`: instruction pointer, call number, four arguments.
const REGISTERS: [&str; 6] = [
    "OFF_REGS_IP",
    "OFF_REGS_NR",
    "OFF_REGS_ARG0",
    "OFF_REGS_ARG1",
    "OFF_REGS_ARG2",
    "OFF_REGS_ARG3",
];

/// `pt_regs` of x86-64, in the order of [`REGISTERS`]; `orig_ax` keeps the number at exit.
const X86_64: [(&str, u32); 6] = [
    ("pt_regs.ip", 0),
    ("pt_regs.orig_ax", 0),
    ("pt_regs.di", 0),
    ("pt_regs.si", 0),
    ("pt_regs.dx", 0),
    ("pt_regs.r10", 0),
];

/// `pt_regs` of arm64; `orig_x0` keeps the first argument at exit, where x0 has the result.
const ARM64: [(&str, u32); 6] = [
    ("pt_regs.pc", 0),
    ("pt_regs.syscallno", 0),
    ("pt_regs.orig_x0", 0),
    ("pt_regs.regs", 8),
    ("pt_regs.regs", 16),
    ("pt_regs.regs", 24),
];

/// The kernel's types, with errors that name the file.
pub struct Kernel {
    types: KernelTypes,
}

/// Names of globals and the value each gets.
pub type Globals = Vec<(&'static str, u32)>;

impl Kernel {
    /// Reads the running kernel's types: some megabytes, a few milliseconds.
    pub fn read() -> Result<Self, ProbeError> {
        let data = fs::read(VMLINUX).map_err(|source| ProbeError::NoBtf {
            path: VMLINUX,
            source,
        })?;
        let types = KernelTypes::parse(data).map_err(bad)?;
        Ok(Self { types })
    }

    /// Number of arguments of a tracepoint; `None` when it does not exist.
    pub fn tracepoint_args(&self, name: &str) -> Result<Option<usize>, ProbeError> {
        self.types.tracepoint_args(name).map_err(bad)
    }

    /// True when there is a function of this name.
    pub fn has_function(&self, name: &str) -> Result<bool, ProbeError> {
        self.types.has_function(name).map_err(bad)
    }

    /// Every global that depends on the kernel's layout.
    ///
    /// # Errors
    /// [`ProbeError::MissingField`] names the struct and the field that this kernel does not have.
    pub fn globals(&self) -> Result<Globals, ProbeError> {
        let mut globals = Globals::new();
        for (global, field) in FIELDS {
            globals.push((global, self.required(field)?));
        }
        let registers = if self.offset("pt_regs.orig_ax")?.is_some() {
            X86_64
        } else {
            ARM64
        };
        for (global, (field, add)) in REGISTERS.iter().zip(registers) {
            globals.push((global, self.required(field)? + add));
        }
        // Only with CONFIG_MEMCG; without it the process that faults counts as the owner.
        let owner = self.offset("mm_struct.owner")?;
        globals.push(("HAS_MM_OWNER", u32::from(owner.is_some())));
        globals.push(("OFF_MM_OWNER", owner.unwrap_or(0)));
        // Only on x86, where a 64-bit process can make 32-bit system calls.
        let status = self.offset("task_struct.thread_info.status")?;
        globals.push(("HAS_COMPAT", u32::from(status.is_some())));
        globals.push(("OFF_TASK_STATUS", status.unwrap_or(0)));
        // Older kernels pass the path of a memcg in between.
        let lock_args = self.tracepoint_args("mmap_lock_start_locking")?;
        globals.push(("MM_LOCK_HAS_PATH", u32::from(lock_args == Some(3))));
        Ok(globals)
    }

    /// Byte and bit of a bit-field.
    pub(super) fn bit(&self, path: &str) -> Result<Option<(u32, u32)>, ProbeError> {
        let bits = self.types.bits(path).map_err(bad)?;
        Ok(bits.map(|bits| (bits / 8, bits % 8)))
    }

    /// True when the owner of an address space can be told.
    pub fn has_mm_owner(&self) -> Result<bool, ProbeError> {
        Ok(self.offset("mm_struct.owner")?.is_some())
    }

    /// Where a field lies, if there is one.
    pub(super) fn offset(&self, path: &str) -> Result<Option<u32>, ProbeError> {
        self.types.offset(path).map_err(bad)
    }

    /// The offset of a field that there must be.
    pub(super) fn required(&self, path: &str) -> Result<u32, ProbeError> {
        self.offset(path)?.ok_or_else(|| ProbeError::MissingField {
            name: path.to_owned(),
        })
    }
}

fn bad(detail: &'static str) -> ProbeError {
    ProbeError::BadBtf {
        path: VMLINUX,
        detail: format!("{detail} does not make sense"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_types(why: &std::io::Error) {
        crate::skip::skip(
            &format!("the types of this kernel ({why})"),
            "use a kernel with CONFIG_DEBUG_INFO_BTF",
        );
    }

    #[test]
    fn the_running_kernel_has_every_field_at_a_plausible_offset() {
        let kernel = match Kernel::read() {
            Ok(kernel) => kernel,
            Err(ProbeError::NoBtf { source, .. }) => {
                return no_types(&source);
            }
            Err(error) => panic!("{error}"),
        };
        let globals = kernel.globals().unwrap();
        let of = |name| {
            globals
                .iter()
                .find(|(global, _)| *global == name)
                .unwrap()
                .1
        };
        assert_eq!(
            of("OFF_TASK_TGID"),
            of("OFF_TASK_PID") + 4,
            "neighbours since 2.6"
        );
        assert!(
            globals.iter().all(|(_, offset)| *offset < 64 << 10),
            "{globals:?}"
        );
        assert_eq!(
            kernel.tracepoint_args("sched_process_fork").unwrap(),
            Some(2)
        );
        assert_eq!(kernel.tracepoint_args("no_such_tracepoint").unwrap(), None);
        assert!(kernel.has_function("handle_mm_fault").unwrap());
    }

    #[test]
    fn a_missing_field_is_named() {
        let kernel = match Kernel::read() {
            Ok(kernel) => kernel,
            Err(ProbeError::NoBtf { source, .. }) => return no_types(&source),
            Err(error) => panic!("{error}"),
        };
        let error = kernel.required("task_struct.no_such_field").unwrap_err();
        assert!(
            error.to_string().contains("task_struct.no_such_field"),
            "{error}"
        );
    }
}
