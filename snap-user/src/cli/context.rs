//! What every command needs to know of its surroundings.

use super::args::{Global, Json, When};
use super::exit::CliError;
use super::render::Style;
use super::render::human::clean;
use super::status;
use crate::session::{Filling, Ram, Rules, SessionError, fill_ram, ram_dir, store_dir};
use serde::Serialize;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::PathBuf;

/// Options of every command, and the terminal.
#[derive(Clone, Debug)]
pub struct Context {
    global: Global,
}

impl Context {
    /// From the command line.
    pub fn new(global: Global) -> Self {
        Self { global }
    }

    /// Where the store is: in memory with `--ram`, else on the disk.
    pub fn store(&self) -> Result<PathBuf, SessionError> {
        match self.is_in_memory() {
            true => ram_dir(),
            false => self.disk(),
        }
    }

    /// Where the store on the disk is.
    pub fn disk(&self) -> Result<PathBuf, SessionError> {
        store_dir(self.global.store.clone().flatten())
    }

    /// `--ram`
    pub fn is_in_memory(&self) -> bool {
        self.global.ram.is_some()
    }

    /// `--identity`
    pub fn identity(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os("KSNAP_IDENTITY").filter(|value| !value.is_empty());
        let named = self.global.identity.clone();
        named.or_else(|| variable().map(PathBuf::from))
    }

    /// `--store` without a folder: it is the store that is asked about.
    pub fn is_about_the_store(&self) -> bool {
        self.global.store == Some(None)
    }

    /// Where the store is that these snapshots are put into, made ready, and by which rules they are kept there.
    pub fn store_to_fill(
        &self,
        filling: Filling<'_>,
        rules: Rules,
    ) -> Result<(PathBuf, Rules), SessionError> {
        match self.ram_to_fill(filling, rules)? {
            Some((ram, rules)) => Ok((ram.dir, rules)),
            None => Ok((self.disk()?, rules)),
        }
    }

    /// With `--ram`, the store in memory, made ready for these snapshots, and by which rules they are kept there.
    pub fn ram_to_fill(
        &self,
        filling: Filling<'_>,
        rules: Rules,
    ) -> Result<Option<(Ram, Rules)>, SessionError> {
        let Some(size) = self.global.ram else {
            return Ok(None);
        };
        let (ram, rules) = fill_ram(size.0, rules, filling)?;
        for note in &ram.notes {
            self.note(note);
        }
        Ok(Some((ram, rules)))
    }

    /// Says what the user should know on standard error, unless -q.
    pub fn note(&self, what: &str) {
        self.tell(&format!(
            "{} {}",
            self.err_style().yellow("note:"),
            clean(what)
        ));
    }

    /// Errors only.
    pub fn is_quiet(&self) -> bool {
        self.global.quiet
    }

    /// How often -v was given.
    pub fn verbosity(&self) -> u8 {
        self.global.verbose
    }

    /// Asks a question that has a yes or no for an answer, no by default. `None`: there is no one to ask.
    pub fn ask(&self, question: &str) -> Option<bool> {
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        if self.global.no_input || !terminal {
            return None;
        }
        let mut answer = String::new();
        write!(io::stderr(), "{question} [y/N] ").ok()?;
        io::stdin().read_line(&mut answer).ok()?;
        let answer = answer.trim().to_lowercase();
        Some(matches!(answer.as_str(), "y" | "yes"))
    }

    /// Style of standard output.
    pub fn out_style(&self) -> Style {
        Style::new(self.has_color(io::stdout().is_terminal()))
    }

    /// Style of standard error.
    pub fn err_style(&self) -> Style {
        Style::new(self.has_color(io::stderr().is_terminal()))
    }

    /// NO_COLOR as <https://no-color.org> defines it.
    fn has_color(&self, terminal: bool) -> bool {
        match self.global.color {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let unset = |name| std::env::var_os(name).is_none_or(|value| value.is_empty());
                terminal
                    && unset("NO_COLOR")
                    && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
            }
        }
    }

    /// Says something on standard error, unless -q.
    pub fn tell(&self, text: &str) {
        if !self.is_quiet() {
            status::clear_line();
            // Nobody reads it: not worth failing for.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    /// Says what failed, also with -q.
    pub fn complain(&self, error: &dyn Display) {
        status::clear_line();
        let _ = writeln!(io::stderr(), "{} {error}", self.err_style().red("ksnap:"));
    }

    /// Prints data: one line of JSON, or text.
    pub fn print<T: Serialize>(
        &self,
        json: Json,
        data: &T,
        text: impl FnOnce(&mut dyn Write, Style) -> io::Result<()>,
    ) -> Result<(), CliError> {
        let mut out = stdout();
        match json.json {
            true => write_json(&mut out, data)?,
            false => text(&mut out, self.out_style())?,
        }
        Ok(out.flush()?)
    }
}

/// Standard output. Unlike `println!`, errors come back rather than panic.
pub fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// One line of JSON.
pub fn write_json(out: &mut dyn Write, data: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, data)?;
    out.write_all(b"\n")
}
