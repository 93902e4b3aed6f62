//! The snapshot file: manifest, pages and indexes ↔ bytes. No I/O here; `docs/format.md` describes each byte.
//!
//! | file | what |
//! |---|---|
//! | `header` | the first 256 bytes, readable alone |
//! | `index` | where each page of this snapshot lies in this file |
//! | `span` | what changed since an ancestor, or since nothing: the shortcut past a long chain |
//! | `manifest` | process state and costs |
//! | `batch` | encoded pages on their way into a file |
//! | `builder` | puts the sections after the pages and the header before them |
//! | `pack` | what snapshots that are gone leave to others |
//! | `pages` | the sink and source of pages that other rooms write to and read from |

mod batch;
mod builder;
mod error;
mod header;
mod index;
mod location;
mod manifest;
mod pack;
mod pages;
mod span;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod total;

pub use batch::{EncodedBatch, EncodedPage, Previous};
pub use builder::{Builder, Elsewhere, Finished, Identity, SpanPlan};
pub use error::ImageError;
pub use header::{
    Arch, FORMAT_VERSION, Found, HEADER_LEN, Header, LATE_LEN, LATE_OFFSET, Late, Section,
    SessionId, SpanKind,
};
pub use index::{
    ENTRY_LEN, IndexEntry, MOST_LOANS, MOST_VERSIONS, checksum, decode_dropped, decode_index,
};
pub use location::Location;
pub use manifest::{MAX_MANIFEST, Manifest, STATE_VERSION};
pub use pack::{Ghost, PACK_ENTRY_LEN, PACK_HEADER_LEN, PackEntry, PackHeader, finish_pack};
pub use pages::{PageSink, PageSource};
pub use span::{MAX_PAGES, RUN_LEN, Run, apply_runs, decode_span, runs_between, runs_of};
