//! Colours, where they are wanted.

/// Makes text stand out, or leaves it as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    on: bool,
}

impl Style {
    /// With or without colours.
    pub const fn new(on: bool) -> Self {
        Self { on }
    }

    /// With colours.
    pub const fn is_on(self) -> bool {
        self.on
    }

    // Select Graphic Rendition of ECMA-48; the 16 basic colours suit any theme.
    fn wrap(self, code: &str, text: &str) -> String {
        match self.on {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    /// Headings.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// What matters less.
    pub fn dim(self, text: &str) -> String {
        self.wrap("2", text)
    }

    /// Trouble.
    pub fn red(self, text: &str) -> String {
        self.wrap("31", text)
    }

    /// What works.
    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// What deserves a look.
    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }
}
