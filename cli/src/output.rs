//! What is printed: tables for people, JSON for programs, names for shells.
//!
//! A table is as wide as its widest cells on a terminal and elsewhere alike; colours are for terminals alone and never
//! where `NO_COLOR` is set.

use crate::failure::Failure;
use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use unicode_width::UnicodeWidthStr;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns, for people
    Table,
    /// JSON, for programs
    Json,
    /// Ids or names alone, one a line
    Name,
}

/// Something that can be printed in every format.
pub trait Shown: Serialize {
    /// The columns' heads.
    const HEAD: &'static [&'static str];

    /// The column's cells.
    fn row(&self) -> Vec<String>;
    /// What it is called by.
    fn name(&self) -> String;
    /// What is shown of it alone, beside its columns.
    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// Where answers go.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    format: Format,
    colours: bool,
}

impl Output {
    /// The standard output in a format.
    pub fn new(format: Format) -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { format, colours: colours && io::stdout().is_terminal() }
    }

    /// Prints a list.
    pub fn list<T: Shown>(&self, items: &[T]) -> Result<(), Failure> {
        self.print(&self.render(items)?)
    }

    /// Prints one thing with all that is known of it.
    pub fn one<T: Shown>(&self, item: &T) -> Result<(), Failure> {
        let text = match self.format {
            Format::Json => json(item)?,
            Format::Name => line(&item.name()),
            Format::Table => {
                let head = T::HEAD.iter().copied().zip(item.row());
                fields(head.chain(item.details()).collect(), self.colours)
            }
        };
        self.print(&text)
    }

    /// Prints an answer that is in no table.
    pub fn value(&self, value: &impl Serialize, text: &str, name: &str) -> Result<(), Failure> {
        self.print(&match self.format {
            Format::Json => json(value)?,
            Format::Table => line(text),
            Format::Name => line(name),
        })
    }

    fn render<T: Shown>(&self, items: &[T]) -> Result<String, Failure> {
        Ok(match self.format {
            Format::Json => json(&items)?,
            Format::Name => items.iter().map(|item| line(&item.name())).collect(),
            Format::Table => table(T::HEAD, items.iter().map(Shown::row).collect(), self.colours),
        })
    }

    /// Prints text as it is. Whoever reads may stop reading: that is no failure.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::system("print", e)),
            _ => Ok(()),
        }
    }

    /// Whether answers are for programs.
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|e| Failure::system("write JSON", e.into()))
}

fn line(text: &str) -> String {
    printable(text) + "\n"
}

/// Text without what a terminal would obey.
pub fn printable(text: &str) -> String {
    let plain = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(plain).collect()
}

/// Text for one cell: printable, on one line.
pub(crate) fn cell(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => printable(text).replace('\n', " "),
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>, colours: bool) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect();
    let widest = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|text| text.width());
        cells.chain([head[column].width()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(widest).collect();
    let mut text = String::new();
    let mut write = |cells: &mut dyn Iterator<Item = &str>, colours: bool| {
        let mut line = String::new();
        for (text, width) in cells.zip(&widths) {
            line.push_str(&paint(text, colours));
            line.extend(std::iter::repeat_n(' ', width - text.width() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    write(&mut head.iter().copied(), false);
    for row in &rows {
        write(&mut row.iter().map(String::as_str), colours);
    }
    text
}

fn fields(fields: Vec<(&str, String)>, colours: bool) -> String {
    let width = fields.iter().map(|(name, _)| name.width()).max().unwrap_or(0);
    let one = |(name, value): (&str, String)| {
        let space = " ".repeat(width - name.width() + 2);
        format!("{}{space}{}\n", name.to_lowercase(), paint(&cell(&value), colours))
    };
    fields.into_iter().map(one).collect()
}

/// Words that people look for get a colour.
fn paint(text: &str, colours: bool) -> String {
    let code = match text {
        "Running" | "Available" | "Finished" | "alive" | "done" | "ok" => 32,
        "Pending" | "Starting" | "Stopping" | "Processing" | "warning" => 33,
        "Failed" | "failed" | "error" | "away" | "no" => 31,
        _ => return text.to_owned(),
    };
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// How long ago it was, for people; the time is in milliseconds since 1970.
pub fn age(milliseconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    span(now.saturating_sub(milliseconds) / 1000)
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7_199 => format!("{}m", seconds / 60),
        7_200..=172_799 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing(&'static str, &'static str);

    impl Shown for Thing {
        const HEAD: &'static [&'static str] = &["ID", "STATUS"];

        fn row(&self) -> Vec<String> {
            vec![self.0.to_owned(), self.1.to_owned()]
        }

        fn name(&self) -> String {
            self.0.to_owned()
        }
    }

    const THINGS: [Thing; 3] =
        [Thing("i-1", "Running"), Thing("数据库", ""), Thing("a\x1b[2J\nb", "x")];

    fn render(format: Format, colours: bool) -> String {
        Output { format, colours }.render(&THINGS).unwrap()
    }

    #[test]
    fn a_table_has_straight_columns_and_obeys_nobody() {
        assert_eq!(
            render(Format::Table, false),
            "ID       STATUS\ni-1      Running\n数据库   -\na\u{fffd}[2J b  x\n"
        );
        let painted = render(Format::Table, true);
        assert!(painted.contains("\x1b[32mRunning\x1b[0m"), "{painted}");
        assert!(!painted.contains("[2J\x1b"), "{painted}");
    }

    #[test]
    fn programs_get_what_they_can_read() {
        let read: serde_json::Value = serde_json::from_str(&render(Format::Json, true)).unwrap();
        assert_eq!(read[0][1], "Running");
        assert_eq!(render(Format::Name, true).lines().next(), Some("i-1"));
    }

    #[test]
    fn ages_are_short() {
        let spans = [5, 125, 7_300, 200_000].map(span);
        assert_eq!(spans, ["5s", "2m", "2h", "2d"]);
    }
}
