//! The victims' command line: `NAME [WORD…] [--option VALUE…] [--flag…]`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// A parsed command line. An option that no victim asked about is an error, not a silent default.
pub struct Args {
    /// Which victim.
    pub name: String,
    /// The words that belong to no option.
    pub words: Vec<String>,
    options: BTreeMap<String, Option<String>>,
    used: RefCell<BTreeSet<String>>,
}

impl Args {
    /// Parses the words after the program's own name.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut words = words.peekable();
        let name = words.next().context("no victim named")?;
        let mut args = Self {
            name,
            words: Vec::new(),
            options: BTreeMap::new(),
            used: RefCell::default(),
        };
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some(option) => {
                    let value = words.next_if(|next| !next.starts_with("--"));
                    args.options.insert(option.to_owned(), value);
                }
                None => args.words.push(word),
            }
        }
        Ok(args)
    }

    /// The value of `--option VALUE`, or the default.
    pub fn value<T: FromStr>(&self, option: &str, default: T) -> Result<T> {
        self.used.borrow_mut().insert(option.to_owned());
        match self.options.get(option) {
            None => Ok(default),
            Some(None) => bail!("--{option} needs a value"),
            Some(Some(text)) => match text.parse() {
                Ok(value) => Ok(value),
                Err(_) => bail!("--{option} {text}: not a valid value"),
            },
        }
    }

    /// Whether `--flag` was given.
    pub fn flag(&self, flag: &str) -> Result<bool> {
        self.used.borrow_mut().insert(flag.to_owned());
        match self.options.get(flag) {
            None => Ok(false),
            Some(None) => Ok(true),
            Some(Some(value)) => bail!("--{flag} takes no value, but {value:?} follows it"),
        }
    }

    /// Whether the test said that it is going to roll this victim back. Every victim accepts the flag.
    pub fn rollbacks(&self) -> Result<bool> {
        self.flag("rollbacks")
    }

    /// Refuses options that nobody asked about.
    pub fn all_used(&self) -> Result<()> {
        let used = self.used.borrow();
        match self
            .options
            .keys()
            .find(|key| *key != "rollbacks" && !used.contains(*key))
        {
            Some(option) => bail!("victim {} has no option --{option}", self.name),
            None => Ok(()),
        }
    }
}
