//! The eBPF programs as seen from user space.
