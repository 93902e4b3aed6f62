//! A snapshot → files that other tools read.
//!
//! | file | what |
//! |---|---|
//! | `core_file` | an ELF core, for debuggers |
//! | `segments` | which memory goes into it, and which is only named |
//! | `notes` | registers, mapped files and the rest of what is no memory |
//! | `mapped` | the files behind mappings, as long as they are still the same |
//! | `sparse` | writes pages to their places, and zeroes to none |

mod core_file;
mod error;
mod mapped;
mod notes;
mod segments;
mod sparse;

pub use core_file::{Core, write_core};
pub use error::ExportError;
pub use mapped::is_unchanged;
