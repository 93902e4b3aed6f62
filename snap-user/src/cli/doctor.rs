//! `ksnap doctor`

use super::args::Doctor;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::render;
use crate::session;

/// Says what works on this machine.
pub fn doctor(context: &Context, args: &Doctor) -> Result<Exit, CliError> {
    let store = context.store().ok();
    let diagnosis = session::doctor(store.as_deref());
    context.print(args.json, &diagnosis, |out, style| {
        render::diagnosis::write(out, style, &diagnosis)
    })?;
    Ok(match diagnosis.ready {
        true => Exit::Done,
        false => Exit::KernelLacks,
    })
}
