//! Verbs about object storage.

use super::{Json, Sealing};
use clap::Args;

/// `ksnap push`
#[derive(Debug, Args)]
pub struct Push {
    /// The snapshot; of the first process of a tree the whole tree
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where to: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH
    #[arg(value_name = "URL")]
    pub url: String,
    #[command(flatten)]
    pub sealing: Sealing,
    #[command(flatten)]
    pub json: Json,
}

/// `ksnap pull`
#[derive(Debug, Args)]
pub struct Pull {
    /// Where from, as it was pushed to
    #[arg(value_name = "URL")]
    pub url: String,
    /// The snapshot: latest, or its id or the first 4 digits of it or more
    #[arg(value_name = "REF", default_value = "latest")]
    pub reference: String,
    /// Only list the snapshots that are there, newest last
    #[arg(short, long, conflicts_with = "reference")]
    pub list: bool,
    #[command(flatten)]
    pub sealing: Sealing,
    #[command(flatten)]
    pub json: Json,
}
