//! ksnap: incremental snapshots of running processes, and rollback to any of them.
//!
//! # Layout
//!
//! One room, one job. A room imports only what its row lists; the `layout` test holds it to that.
//!
//! | room | its one job | may import |
//! |---|---|---|
//! | [`model`] | plain data | – |
//! | [`sys`] | Linux and nothing else: ptrace, memory copy, /proc, userfaultfd, page scans, remote system calls | model |
//! | [`probe`] | loads the eBPF object, turns its ring buffer into typed events, reads its statistics | model, sys |
//! | [`track`] | which pages changed since the last epoch? | model, sys, probe |
//! | [`codec`] | page bytes ↔ encoded bytes | model |
//! | [`image`] | manifest and pages ↔ bytes of a snapshot file | model, codec |
//! | [`store`] | durable snapshots by id | model, sys, codec, image |
//! | [`capture`] | a frozen process → its state and pages | model, sys, track, image |
//! | [`restore`] | plan what to put back, then put it back | model, sys, image |
//! | [`export`] | a snapshot → files that other tools read | model, sys, image |
//! | [`wire`] | a remote peer: messages ↔ bytes, over TLS with pinned keys | model, codec |
//! | [`bucket`] | snapshots in object storage: chunks, indexes and trees ↔ objects of a service | model, codec, image |
//! | [`profile`] | what it cost: phases, histograms, reports | model |
//! | [`session`] | the verbs, each over the rooms above; the continuous scheduler | model, sys, probe, track, codec, image, store, capture, restore, export, wire, bucket, profile |
//! | [`cli`] | arguments → one session call → output and exit code | session, profile, model |

#[cfg(feature = "object-storage")]
pub mod bucket;
pub mod capture;
pub mod cli;
pub mod codec;
pub mod export;
pub mod image;
pub mod model;
pub mod probe;
pub mod profile;
pub mod restore;
pub mod session;
pub mod store;
pub mod sys;
pub mod track;
pub mod wire;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod layout;
#[cfg(test)]
mod skip;
#[cfg(test)]
mod small_disk;
