//! Linux and nothing else.
#![allow(unsafe_code, reason = "system calls; each block says why it is sound")]
