//! A kernel that refuses something, as the seccomp profile of a container does.

use crate::Python;
use anyhow::Result;
use std::process::Command;

/// Has io_uring_setup(2), which has one number everywhere, fail with EPERM from here on (seccomp(2), `SECCOMP_MODE_FILTER`;
/// classic BPF: load the number, compare, refuse or allow), and executes what follows.
const WITHOUT_IO_URING: &str = r#"
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
for call in [(38, 1, 0, 0, 0), (22, 2, ctypes.byref(filter), 0, 0)]:
    if prctl(*call) != 0:
        sys.exit(f"prctl {call[0]}: {os.strerror(ctypes.get_errno())}")
os.execv(sys.argv[1], sys.argv[1:])
"#;

/// The same command without io_uring: its program, arguments and variables.
pub fn without_io_uring(command: &Command) -> Result<Command> {
    let mut refused = Command::new(Python::interpreter()?);
    refused.args(["-c", WITHOUT_IO_URING]);
    refused.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => refused.env(name, value),
            None => refused.env_remove(name),
        };
    }
    Ok(refused)
}
