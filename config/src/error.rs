//! What is wrong with a configuration, said so that an operator can put it right: where, which key, what was found, what
//! would be right.
//!
//! Text from the file is escaped before it is shown, so a file cannot send control sequences to a terminal or a log.

use std::fmt;

/// Mistakes shown by [`ConfigErrors`]'s `Display`; the rest is counted.
const SHOWN: usize = 50;

/// Longest excerpt of a value in a message, in characters.
const EXCERPT: usize = 80;

/// Every mistake found in one file, in file order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    mistakes: Vec<Mistake>,
}

impl ConfigErrors {
    /// Sorted by place; `mistakes` holds at least one.
    pub(crate) fn new(mut mistakes: Vec<Mistake>) -> ConfigErrors {
        mistakes.sort_by_key(|m| m.place);
        ConfigErrors { mistakes }
    }

    /// The mistakes, in file order.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for ConfigErrors {
    /// One line per mistake, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().take(SHOWN).enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{mistake}")?;
        }
        match self.mistakes.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// One mistake. Displayed as `sluice.toml:14: service "trading": timeouts.connect: "5" has no unit; write "5s", "500ms" or "2m"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file as it was named to [`crate::load`] or [`crate::parse`].
    pub file: String,
    /// Where in the file; absent only when the file could not be read at all.
    pub place: Option<Place>,
    /// The key: `runtime.cores[1]`; in an item with a name `service "trading": timeouts.connect`, without one
    /// `service[0].timeouts.connect`, counted from 0. `syntax` when the file is not TOML.
    pub key: String,
    /// What stands there, and what is wrong with it.
    pub found: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(place) = self.place {
            write!(f, "{}:", place.line)?;
        }
        write!(f, " {}: {}; {}", self.key, self.found, self.remedy)
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// What a value's parser finds wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Continues the value: `has no unit`.
    pub(crate) found: String,
    /// What would be right.
    pub(crate) remedy: String,
}

impl Wrong {
    pub(crate) fn new(found: impl Into<String>, remedy: impl Into<String>) -> Wrong {
        Wrong { found: found.into(), remedy: remedy.into() }
    }
}

/// A value with the place and the key it came from, for checks that compare values with each other.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    /// Octet offset in the file.
    pub(crate) at: usize,
    pub(crate) key: String,
}

impl<T> Located<T> {
    /// The same place with another value.
    pub(crate) fn with<U>(&self, value: U) -> Located<U> {
        Located { value, at: self.at, key: self.key.clone() }
    }
}

/// Collects the mistakes of one file.
pub(crate) struct Diagnostics<'a> {
    file: &'a str,
    text: &'a str,
    /// Octet offset of each line's start.
    lines: Vec<usize>,
    mistakes: Vec<Mistake>,
    warnings: Vec<Mistake>,
}

impl<'a> Diagnostics<'a> {
    pub(crate) fn new(file: &'a str, text: &'a str) -> Diagnostics<'a> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Diagnostics { file, text, lines, mistakes: Vec::new(), warnings: Vec::new() }
    }

    /// How many so far: equal before and after a step means that the step found nothing wrong.
    pub(crate) fn count(&self) -> usize {
        self.mistakes.len()
    }

    /// Notes a mistake at octet `at`.
    pub(crate) fn report(
        &mut self,
        at: usize,
        key: impl Into<String>,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let mistake = self.mistake(at, key.into(), found.into(), remedy.into());
        self.mistakes.push(mistake);
    }

    /// Notes what a located value does that may not be meant.
    pub(crate) fn warn<T>(&mut self, value: &Located<T>, found: impl Into<String>, remedy: impl Into<String>) {
        let warning = self.mistake(value.at, value.key.clone(), found.into(), remedy.into());
        self.warnings.push(warning);
    }

    fn mistake(&self, at: usize, key: String, found: String, remedy: String) -> Mistake {
        Mistake { file: self.file.to_owned(), place: Some(self.place(at)), key, found, remedy }
    }

    /// Notes a mistake in a located value.
    pub(crate) fn wrong<T>(&mut self, value: &Located<T>, found: impl Into<String>, remedy: impl Into<String>) {
        self.report(value.at, value.key.clone(), found, remedy);
    }

    /// The line of octet `at`, from 1.
    pub(crate) fn line(&self, at: usize) -> usize {
        self.place(at).line
    }

    /// The place of octet `at`.
    pub(crate) fn place(&self, at: usize) -> Place {
        let at = at.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..at).map_or(at - start, |before| before.chars().count()) + 1;
        Place { line, column }
    }

    /// Notes what the TOML parser says.
    pub(crate) fn syntax(&mut self, at: usize, message: &str) {
        let (found, remedy) = match message.split_once(", expected ") {
            Some((found, expected)) => (found, format!("expected {expected}")),
            None if message.contains("duplicate key") => (message, "keep one of the two".to_owned()),
            None => (message, "correct the line to valid TOML (https://toml.io)".to_owned()),
        };
        self.report(at, "syntax", found.escape_debug().to_string(), remedy);
    }

    /// The warnings so far, in file order.
    pub(crate) fn take_warnings(&mut self) -> Vec<Mistake> {
        let mut warnings = std::mem::take(&mut self.warnings);
        warnings.sort_by_key(|warning| warning.place);
        warnings
    }

    pub(crate) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }
}

/// `text` in double quotes, escaped, shortened.
pub(crate) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(EXCERPT).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

/// `"a", "b" or "c"`.
pub(crate) fn alternatives<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(quoted).collect();
    match quoted.split_last() {
        None => String::new(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The name among `known` that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long words are no slips of the pen, and the distance costs their length squared.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let distance = |name: &str| {
        let name = name.to_lowercase().replace('-', "_");
        let extends = name.len().min(word.len()) >= 3 && (name.starts_with(&word) || word.starts_with(&name));
        if extends { 1 } else { strsim::damerau_levenshtein(&word, &name) }
    };
    known
        .into_iter()
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
