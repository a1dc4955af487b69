//! What is printed: lines for people, or JSON for programs.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use extent::{Error, Kind, Result};
use serde::Serialize;
use serde_json::json;

/// When to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a word is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tone {
    /// Fine.
    Good,
    /// Look at it.
    Warn,
    /// Broken.
    Bad,
    /// Less important.
    Faint,
    /// A heading.
    Bold,
}

/// Where a command's results go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    colour: Colour,
}

impl Output {
    pub(crate) const fn new(json: bool, colour: Colour) -> Self {
        Self { json, colour }
    }

    /// Whether programs read this.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Whether progress may be drawn over itself.
    pub(crate) fn is_lively(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }

    /// A line on standard output.
    ///
    /// # Errors
    /// If nobody reads it any more.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.as_ref())
            .and_then(|()| out.flush())
            .map_err(|e| Error::io("writing to standard output", e))
    }

    /// A line on standard error, for people only. Lost if nobody is there.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        if !self.json {
            let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// A value as one line of JSON on standard output.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(crate) fn json(self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value)
            .map_err(|e| Kind::Invalid.error("a result that JSON cannot say").caused_by(e))?;
        self.line(text)
    }

    /// An error, on standard error.
    pub(crate) fn error(self, error: &Error) {
        let mut err = io::stderr().lock();
        let _ = if self.json {
            let body = json!({ "kind": error.kind().name(), "message": error.to_string() });
            writeln!(err, "{}", json!({ "error": body }))
        } else {
            let head = self.paint_for(io::stderr().is_terminal(), Tone::Bad, "forebay: error:");
            writeln!(err, "{head} {error}")
        };
    }

    /// A word of standard output in its tone.
    pub(crate) fn paint(self, tone: Tone, text: &str) -> String {
        self.paint_for(io::stdout().is_terminal(), tone, text)
    }

    fn paint_for(self, terminal: bool, tone: Tone, text: &str) -> String {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let coloured = match self.colour {
            Colour::Auto => terminal && !plain,
            Colour::Always => true,
            Colour::Never => false,
        };
        if !coloured || self.json {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "1;31",
            Tone::Faint => "2",
            Tone::Bold => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Rows under a heading, columns as wide as they must be. Columns whose head begins with `>` are
/// aligned to the right.
pub(crate) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
        cells.chain([heads[index].trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (index, cell) in cells.enumerate() {
            let gap = " ".repeat(widths[index].saturating_sub(cell.chars().count()));
            let (before, after) = if heads[index].starts_with('>') {
                (gap, String::new())
            } else {
                (String::new(), gap)
            };
            line.push_str(if index == 0 { "" } else { "  " });
            line.push_str(&before);
            line.push_str(cell);
            line.push_str(&after);
        }
        line.trim_end().to_owned()
    };
    let head = render(&mut heads.iter().map(|head| head.trim_start_matches('>')));
    let body = rows.iter().map(|row| render(&mut row.iter().map(String::as_str)));
    std::iter::once(head).chain(body).collect::<Vec<_>>().join("\n")
}

/// Whether an error only says that the reader of our output has left, as `| head` does.
pub(crate) fn is_broken_pipe(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![
            vec!["data/a".to_owned(), "4 KiB".to_owned(), "clean".to_owned()],
            vec!["data/long-name".to_owned(), "1.5 GiB".to_owned(), "dirty".to_owned()],
        ];
        let text = table(&["NAME", ">SIZE", "STATE"], &rows);
        let expected = "\
NAME               SIZE  STATE
data/a            4 KiB  clean
data/long-name  1.5 GiB  dirty";
        assert_eq!(text, expected);
    }

    #[test]
    fn colour_is_only_where_asked() {
        let plain = Output::new(false, Colour::Never);
        assert_eq!(plain.paint(Tone::Bad, "x"), "x");
        let loud = Output::new(false, Colour::Always);
        assert_eq!(loud.paint(Tone::Bad, "x"), "\u{1b}[1;31mx\u{1b}[0m");
        let json = Output::new(true, Colour::Always);
        assert_eq!(json.paint(Tone::Bad, "x"), "x", "JSON stays plain");
    }

    #[test]
    fn a_reader_that_left_is_recognised() {
        let gone = Error::io("writing", io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_broken_pipe(&gone));
        assert!(!is_broken_pipe(&Kind::Io.error("else")));
    }
}
