//! The verbs, each a short function over the other rooms, and the continuous scheduler.

mod arrival;
#[cfg(test)]
mod asleep;
mod audit;
#[cfg(feature = "object-storage")]
mod bucket_keys;
#[cfg(feature = "object-storage")]
mod bucket_known;
#[cfg(feature = "object-storage")]
mod bucket_list;
#[cfg(feature = "object-storage")]
mod bucket_prune;
#[cfg(all(test, feature = "object-storage"))]
mod bucket_sealed_tests;
#[cfg(all(test, feature = "object-storage"))]
mod bucket_sealed_tree_tests;
#[cfg(all(test, feature = "object-storage"))]
mod bucket_tests;
#[cfg(all(test, feature = "object-storage"))]
mod bucket_tree_tests;
mod budget;
mod clone;
mod clone_fetch;
mod clone_order;
mod clone_send;
mod clone_source;
mod contents;
mod control;
mod describe;
mod descriptor;
mod descriptors;
mod diff;
#[cfg(all(test, feature = "object-storage"))]
mod disk_full_tests;
mod doctor;
mod engine;
mod error;
mod events;
mod export;
mod family;
mod flight;
mod flush;
mod inspect;
mod keeper;
mod kept;
mod key;
mod log;
mod mirror;
mod mixed;
mod open;
mod pacer;
mod pipeline;
mod postcopy;
mod precopy;
mod profile;
mod prune;
#[cfg(feature = "object-storage")]
mod pull;
#[cfg(feature = "object-storage")]
mod pull_coming;
#[cfg(feature = "object-storage")]
mod push;
#[cfg(feature = "object-storage")]
mod push_pack;
#[cfg(feature = "object-storage")]
mod push_subject;
mod ram;
mod ram_room;
mod remote;
mod revive;
mod revive_contents;
mod revive_here;
mod revive_hot;
mod revive_kin;
mod revive_memory;
mod revive_open;
mod revive_terminals;
#[cfg(test)]
mod revive_tests;
mod revive_tree;
mod revive_watched;
mod rollback;
mod rollback_load;
mod rollback_parts;
mod rollback_tree;
mod rollback_tree_again;
mod rollback_tree_lost;
mod rollback_tree_put_back;
mod rollback_tree_stop;
mod rollback_world;
mod run;
mod sealing;
mod serve;
mod serve_incoming;
mod serve_known;
mod serve_lazily;
mod serve_link;
mod serve_listed;
mod serve_restore;
mod serve_room;
mod serve_supply;
mod serve_window;
mod service;
mod several;
mod show;
mod snap;
mod squash;
mod staging;
mod stop;
mod subject;
mod tag;
mod tree;
mod tree_engine;
mod tree_files;
mod tree_left;
mod tree_links;
mod tree_shared;
mod tree_stop;
mod tree_terminals;
mod tree_who;
mod types;
mod verify;
mod watch;
mod writer;

pub use crate::capture::Verdict;
pub use crate::restore::files::Options as FileOptions;
pub use crate::restore::revive::Network;
pub use crate::store::StoredContent;
#[cfg(feature = "object-storage")]
pub use bucket_list::{BucketEntry, BucketListing, list_bucket};
#[cfg(feature = "object-storage")]
pub use bucket_prune::{BucketPruning, BucketRules, prune_bucket};
pub use clone::{CloneOptions, Cloned, Round, RunsThere, clone_live, clone_stored, is_process};
pub use clone_fetch::Fetched;
#[doc(hidden)]
pub use control::{Also, Reply, Request};
pub use describe::{StoreDescription, describe_store};
pub use descriptor::OpenDescriptor;
pub use descriptors::raise_descriptors;
pub use diff::{
    Change, Comparison, DescriptorDiff, MappingDiff, MappingPages, PagesDiff, RegisterDiff,
    ThreadDiff, diff,
};
pub use doctor::{Check, Diagnosis, Outcome, doctor};
pub use engine::Engine;
pub use error::{AuditPage, SessionError, Trouble};
pub use export::{ExportedCore, export_core, unnamed_core};
pub use family::look as look_at_tree;
pub use flush::{FlushDone, FlushFailed, FlushPlan, FlushSession, flush, plan_flush};
pub use inspect::{
    Inspection, Judged, inspect, inspect_tree, refuse_incomplete, refuse_incomplete_tree,
};
pub use key::{KeyEntry, OwnKey, forget_key, own_key, trust_key, trusted_keys};
pub use log::{LogEntry, find, log, store_dir};
pub use profile::profile;
pub use prune::{Gone, PrunedSession, Pruning, What, prune};
#[cfg(feature = "object-storage")]
pub use pull::{Pulled, Pulling, pull};
#[cfg(feature = "object-storage")]
pub use push::{Pushed, Pushing, push};
pub use ram::{Ram, ram_dir};
pub use ram_room::{Filling, fill_ram};
pub use remote::DEFAULT_PORT;
pub use revive::{Pids, ReviveOptions, Revived, RevivedMember, revive};
pub use revive_watched::revive_watched;
pub use rollback::{find_to_go_back_to, rollback};
pub use rollback_tree::{
    RolledBackProcess, RolledBackTree, find_tree_to_go_back_to, rollback_tree,
};
pub use run::{Unwatched, run};
pub use sealing::{sealed_note, sealing_notes, use_keys};
pub use serve::{Served, serve};
pub use several::{Watched, watch};
pub use show::{Description, Mapping, Process, Thread, show};
pub use snap::snap;
pub use squash::squash;
pub use tag::{TagEntry, delete_tag, set_tag, tags};
pub use tree::{TakenProcess, TakenTree, snap_tree};
pub use types::*;
pub use verify::{Damage, Rebuilt, Verification, rebuild, verify};

/// Result of this room.
pub type Result<T> = std::result::Result<T, SessionError>;
