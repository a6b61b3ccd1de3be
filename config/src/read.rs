//! Reads tables of a parsed TOML file key by key. A value of the wrong type, range or form is noted and read as absent, so
//! that one pass finds every mistake.

use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::{Diagnostics, Located, Wrong, alternatives, nearest, quoted};
use crate::model::{Measure, Rate};
use crate::prefix::read_prefix;
use crate::{rate, units};

/// One table of the file.
pub(crate) struct Section<'t> {
    table: &'t DeTable<'t>,
    /// Octet offset of its header.
    pub(crate) at: usize,
    /// What goes before its keys' names: `runtime.` or `service "trading": timeouts.`.
    prefix: String,
}

/// One value of a table or list.
pub(crate) struct Entry<'t> {
    value: &'t DeValue<'t>,
    at: usize,
    pub(crate) key: String,
}

impl<'t> Section<'t> {
    /// The whole file.
    pub(crate) fn root(table: &'t Spanned<DeTable<'t>>) -> Section<'t> {
        Section { table: table.get_ref(), at: 0, prefix: String::new() }
    }

    /// The key's full path.
    pub(crate) fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Notes every key that is not among `known`.
    pub(crate) fn deny_unknown(&self, known: &[&str], diag: &mut Diagnostics<'_>) {
        for (key, _) in self.table.iter().filter(|(key, _)| !known.contains(&key.get_ref().as_ref())) {
            let name = key.get_ref();
            let listed = known.join(", ");
            let remedy = match nearest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean \"{meant}\"? Known here: {listed}"),
                None => format!("known here: {listed}"),
            };
            let shown = quoted(name);
            // What TOML takes without quotes is shown without.
            let bare = (1..64).contains(&name.len())
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
            let path = self.path(if bare { name } else { &shown });
            diag.report(key.span().start, path, "unknown key", remedy);
        }
    }

    /// The value of `key`, if there is one.
    pub(crate) fn get(&self, key: &str) -> Option<Entry<'t>> {
        let (name, value) = self.table.get_key_value(key)?;
        // A table's own span may be its first line only or nothing; its key always has one.
        let at = if value.get_ref().is_table() { name.span().start } else { value.span().start };
        Some(Entry { value: value.get_ref(), at, key: self.path(key) })
    }

    /// The value of `key`, which must be there.
    pub(crate) fn require(&self, key: &str, example: &str, diag: &mut Diagnostics<'_>) -> Option<Entry<'t>> {
        let entry = self.get(key);
        if entry.is_none() {
            diag.report(self.at, self.path(key), "is missing", format!("write {key} = {example}"));
        }
        entry
    }

    /// The table `[key]`.
    pub(crate) fn table(&self, key: &str, diag: &mut Diagnostics<'_>) -> Option<Section<'t>> {
        let entry = self.get(key)?;
        match entry.value {
            DeValue::Table(table) => Some(Section { table, at: entry.at, prefix: format!("{}.", entry.key) }),
            DeValue::Array(_) => {
                diag.report(entry.at, entry.key.clone(), "is a list", format!("there is only one; write [{key}]"));
                None
            }
            _ => {
                let found = entry.describe();
                diag.report(entry.at, entry.key.clone(), found, format!("write a table, [{key}]"));
                None
            }
        }
    }

    /// The tables `[[key]]`. `header` is the name between the brackets. Those with a `name` are called by it.
    pub(crate) fn tables(&self, key: &str, header: &str, diag: &mut Diagnostics<'_>) -> Vec<Section<'t>> {
        let Some(entry) = self.get(key) else { return Vec::new() };
        let DeValue::Array(items) = entry.value else {
            let found = if entry.value.is_table() { "is a single table".to_owned() } else { entry.describe() };
            diag.report(entry.at, entry.key.clone(), found, format!("there may be several; write [[{header}]]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let indexed = format!("{}[{i}]", entry.key);
            let DeValue::Table(table) = item.get_ref() else {
                diag.report(item.span().start, indexed, "is not a table", format!("write [[{header}]]"));
                continue;
            };
            let name = table.get("name").and_then(|name| name.get_ref().as_str()).filter(|name| !name.is_empty());
            let prefix = match name {
                Some(name) => format!("{} {}: ", entry.key, quoted(name)),
                None => format!("{indexed}."),
            };
            sections.push(Section { table, at: item.span().start, prefix });
        }
        sections
    }

    /// The table `key`, or the tables of the list `key`, as in `key = { ... }` and `key = [{ ... }]`.
    pub(crate) fn table_or_tables(&self, key: &str, header: &str, diag: &mut Diagnostics<'_>) -> Vec<Section<'t>> {
        match self.get(key) {
            Some(entry) if entry.value.is_table() => self.table(key, diag).into_iter().collect(),
            _ => self.tables(key, header, diag),
        }
    }

    /// The text of `key`.
    pub(crate) fn text(&self, key: &str, diag: &mut Diagnostics<'_>) -> Option<Located<&'t str>> {
        self.get(key)?.text(diag)
    }

    /// The text of `key`, read by `read`.
    pub(crate) fn parsed<T>(
        &self,
        key: &str,
        diag: &mut Diagnostics<'_>,
        read: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<Located<T>> {
        self.get(key)?.parsed(diag, read)
    }

    /// One of `choices`.
    pub(crate) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)], diag: &mut Diagnostics<'_>) -> Option<T> {
        let text = self.text(key, diag)?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text.value) {
            return Some(*choice);
        }
        let names = alternatives(choices.iter().map(|(name, _)| *name));
        let remedy = match nearest(text.value, choices.iter().map(|(name, _)| *name)) {
            Some(meant) if choices.len() > 1 => format!("did you mean \"{meant}\"? Write {names}"),
            _ => format!("write {names}"),
        };
        diag.wrong(&text, format!("{} is not one of the choices", quoted(text.value)), remedy);
        None
    }

    /// A whole number within `range`.
    pub(crate) fn integer<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        key: &str,
        range: RangeInclusive<T>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Located<T>> {
        self.get(key)?.integer(range, diag)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self, key: &str, diag: &mut Diagnostics<'_>) -> Option<bool> {
        let entry = self.get(key)?;
        if let DeValue::Boolean(b) = entry.value {
            return Some(*b);
        }
        let found = entry.describe();
        diag.report(entry.at, entry.key, found, "write true or false, without quotes");
        None
    }

    /// A duration within `range`; a zero needs no unit where `range` holds it.
    pub(crate) fn duration(
        &self,
        key: &str,
        range: RangeInclusive<Duration>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Duration> {
        self.duration_or(None, key, range, diag)
    }

    fn duration_or(
        &self,
        word: Option<&str>,
        key: &str,
        range: RangeInclusive<Duration>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Duration> {
        let entry = self.get(key)?;
        if let DeValue::Integer(n) = entry.value {
            if n.as_str() == "0" && range.contains(&Duration::ZERO) {
                return Some(Duration::ZERO);
            }
            let wrong = units::no_duration_unit(n.as_str(), &format!("{} is a number without a unit", n.as_str()));
            diag.report(entry.at, entry.key, wrong.found, wrong.remedy);
            return None;
        }
        let read = entry.parsed(diag, units::duration)?;
        let (least, most) = (units::show_duration(*range.start()), units::show_duration(*range.end()));
        let other = word.map(|word| format!("\"{word}\", or ")).unwrap_or_default();
        let remedy = format!("write {other}a duration from \"{least}\" to \"{most}\"");
        let shown = units::show_duration(read.value);
        if read.value.is_zero() && !range.contains(&read.value) {
            let off = if word.is_some() { "" } else { "; it cannot be switched off" };
            diag.wrong(&read, format!("\"{shown}\" would end everything at once{off}"), remedy);
        } else if read.value < *range.start() {
            diag.wrong(&read, format!("\"{shown}\" is too short"), remedy);
        } else if read.value > *range.end() {
            diag.wrong(&read, format!("\"{shown}\" is too long"), remedy);
        } else {
            return Some(read.value);
        }
        None
    }

    /// A duration within `range`; `"off"` is none.
    pub(crate) fn duration_or_off(
        &self,
        key: &str,
        range: RangeInclusive<Duration>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Option<Duration>> {
        let entry = self.get(key)?;
        if matches!(entry.value, DeValue::String(text) if text == "off") {
            return Some(None);
        }
        self.duration_or(Some("off"), key, range, diag).map(Some)
    }

    /// A size within `range`, octets.
    pub(crate) fn size(&self, key: &str, range: RangeInclusive<u64>, diag: &mut Diagnostics<'_>) -> Option<u64> {
        let entry = self.get(key)?;
        if let DeValue::Integer(n) = entry.value {
            let wrong = units::no_size_unit(n.as_str(), &format!("{} is a number without a unit", n.as_str()));
            diag.report(entry.at, entry.key, wrong.found, wrong.remedy);
            return None;
        }
        let read = entry.parsed(diag, units::size)?;
        if range.contains(&read.value) {
            return Some(read.value);
        }
        let (least, most) = (units::show_size(*range.start()), units::show_size(*range.end()));
        let which = if read.value < *range.start() { "small" } else { "large" };
        let found = format!("\"{}\" ({} octets) is too {which}", units::show_size(read.value), read.value);
        diag.wrong(&read, found, format!("write a size from \"{least}\" to \"{most}\""));
        None
    }

    /// How much of `of` in which time.
    pub(crate) fn rate(&self, key: &str, of: Measure, diag: &mut Diagnostics<'_>) -> Option<Rate> {
        self.get(key)?.rate(of, diag)
    }

    /// A whole number or a range of them, within `limits`.
    pub(crate) fn range<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        key: &str,
        limits: RangeInclusive<T>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<RangeInclusive<T>> {
        self.get(key)?.range(limits, diag).map(|range| range.value)
    }

    /// The value of `key` when it is no list, else its items; absent = none.
    pub(crate) fn one_or_more(&self, key: &str) -> Vec<Entry<'t>> {
        self.get(key).map(Entry::one_or_more).unwrap_or_default()
    }

    /// The items of the list `key`; absent = none.
    pub(crate) fn list(&self, key: &str, diag: &mut Diagnostics<'_>) -> Vec<Entry<'t>> {
        self.get(key).map(|entry| entry.items(diag)).unwrap_or_default()
    }
}

impl<'t> Entry<'t> {
    /// The value's place, for mistakes of the value as a whole.
    pub(crate) fn located<T>(&self, value: T) -> Located<T> {
        Located { value, at: self.at, key: self.key.clone() }
    }

    /// `"1500" is a string`.
    fn describe(&self) -> String {
        match self.value {
            DeValue::String(s) => format!("{} is a string", quoted(s)),
            DeValue::Integer(n) => format!("{n} is a whole number"),
            DeValue::Float(n) => format!("{} is a number with a fraction", n.as_str()),
            DeValue::Boolean(b) => format!("{b} is a truth value"),
            DeValue::Datetime(d) => format!("{d} is a date or time"),
            DeValue::Array(_) => "is a list".to_owned(),
            DeValue::Table(_) => "is a table".to_owned(),
        }
    }

    /// The value as text.
    pub(crate) fn text(&self, diag: &mut Diagnostics<'_>) -> Option<Located<&'t str>> {
        if let DeValue::String(s) = self.value {
            return Some(self.located(s.as_ref()));
        }
        let remedy = match self.value {
            DeValue::Integer(n) => format!("write it in quotes, \"{n}\""),
            DeValue::Boolean(b) => format!("write it in quotes, \"{b}\""),
            DeValue::Array(_) => "write one value in quotes, without [ ]".to_owned(),
            _ => "write a text in quotes".to_owned(),
        };
        diag.report(self.at, self.key.clone(), self.describe(), remedy);
        None
    }

    /// The value as text, read by `read`.
    pub(crate) fn parsed<T>(
        &self,
        diag: &mut Diagnostics<'_>,
        read: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<Located<T>> {
        let text = self.text(diag)?;
        match read(text.value) {
            Ok(value) => Some(text.with(value)),
            Err(wrong) => {
                diag.wrong(&text, format!("{} {}", quoted(text.value), wrong.found), wrong.remedy);
                None
            }
        }
    }

    /// The value as an address or a prefix.
    pub(crate) fn prefix(&self, diag: &mut Diagnostics<'_>) -> Option<Located<IpNet>> {
        let text = self.text(diag)?;
        match read_prefix(text.value) {
            Ok(read) => {
                if let Some((found, remedy)) = read.warning() {
                    diag.warn(&text, format!("{} {found}", quoted(text.value)), remedy);
                }
                Some(text.with(read.net))
            }
            Err(error) => {
                diag.wrong(&text, format!("{} {error}", quoted(text.value)), error.remedy());
                None
            }
        }
    }

    /// The value as a whole number within `range`.
    pub(crate) fn integer<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        range: RangeInclusive<T>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Located<T>> {
        let (least, most): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        let DeValue::Integer(n) = self.value else {
            let remedy = match self.value {
                DeValue::String(s) if s.parse::<i64>().is_ok() => format!("write {s} without quotes"),
                _ => format!("write a whole number from {least} to {most}"),
            };
            diag.report(self.at, self.key.clone(), self.describe(), remedy);
            return None;
        };
        let number = i128::from_str_radix(n.as_str(), n.radix()).ok().filter(|n| (least..=most).contains(n));
        if let Some(value) = number.and_then(|n| T::try_from(n).ok()) {
            return Some(self.located(value));
        }
        let found = format!("{n} is out of range");
        diag.report(self.at, self.key.clone(), found, format!("write a number from {least} to {most}"));
        None
    }

    /// The text, if it is one.
    pub(crate) fn as_text(&self) -> Option<&'t str> {
        if let DeValue::String(s) = self.value { Some(s.as_ref()) } else { None }
    }

    /// The value as one of `choices`, in numbers.
    pub(crate) fn number_among<const N: usize>(&self, choices: [u8; N], diag: &mut Diagnostics<'_>) -> Option<u8> {
        if let DeValue::Integer(n) = self.value
            && let Ok(number) = u8::from_str_radix(n.as_str(), n.radix())
            && choices.contains(&number)
        {
            return Some(number);
        }
        let found = match self.value {
            DeValue::Integer(n) => format!("{n} is not one of the choices"),
            _ => self.describe(),
        };
        diag.report(self.at, self.key.clone(), found, format!("write {}", choices.map(|n| n.to_string()).join(" or ")));
        None
    }

    /// The value as so much of `of` in a time.
    pub(crate) fn rate(&self, of: Measure, diag: &mut Diagnostics<'_>) -> Option<Rate> {
        if let DeValue::Integer(n) = self.value {
            let unit = if of == Measure::Bytes { "MiB" } else { "" };
            let wrong = rate::no_time(&format!("{}{unit}", n.as_str()), format!("{n} is a number without a time"));
            diag.report(self.at, self.key.clone(), wrong.found, wrong.remedy);
            return None;
        }
        self.parsed(diag, |text| rate::rate(text, of)).map(|rate| rate.value)
    }

    /// The value as a whole number or, in quotes, a range of them, within `limits`.
    pub(crate) fn range<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        limits: RangeInclusive<T>,
        diag: &mut Diagnostics<'_>,
    ) -> Option<Located<RangeInclusive<T>>> {
        if self.value.is_str() {
            return self.parsed(diag, |text| units::range(text, limits));
        }
        let number = self.integer(limits, diag)?;
        Some(number.with(number.value..=number.value))
    }

    /// The value itself when it is no list, else its items, each with its index in its key.
    pub(crate) fn one_or_more(self) -> Vec<Entry<'t>> {
        if let DeValue::Array(items) = self.value { self.indexed(items.iter()) } else { vec![self] }
    }

    fn indexed(&self, items: impl Iterator<Item = &'t Spanned<DeValue<'t>>>) -> Vec<Entry<'t>> {
        let entry = |(i, item): (usize, &'t Spanned<DeValue<'t>>)| Entry {
            value: item.get_ref(),
            at: item.span().start,
            key: format!("{}[{i}]", self.key),
        };
        items.enumerate().map(entry).collect()
    }

    /// The value's items, each with its index in its key.
    pub(crate) fn items(&self, diag: &mut Diagnostics<'_>) -> Vec<Entry<'t>> {
        if let DeValue::Array(items) = self.value {
            return self.indexed(items.iter());
        }
        let remedy = match self.value {
            DeValue::String(s) => format!("put it into a list, [{}]", quoted(s)),
            DeValue::Integer(n) => format!("put it into a list, [{n}]"),
            _ => "write a list, as in [ ... ]".to_owned(),
        };
        diag.report(self.at, self.key.clone(), self.describe(), remedy);
        Vec::new()
    }

    /// The value's items, or the value itself when it is a single text.
    pub(crate) fn items_or_self(self, diag: &mut Diagnostics<'_>) -> Vec<Entry<'t>> {
        if self.value.is_str() { vec![self] } else { self.items(diag) }
    }
}
