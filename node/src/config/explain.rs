//! What is wrong with a configuration file, and where.

use extent::{Error, Kind};

/// An error of the parser as `file:line: what, and what to write instead`.
pub(super) fn invalid(name: &str, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| {
        let before = &text.as_bytes()[..span.start.min(text.len())];
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    });
    Kind::Invalid.error(format!("{name}:{line}: {}", say(error.message())))
}

fn say(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let what = match message.split_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["unknown", "field"] => "key",
        ["unknown", "variant"] => "value",
        _ => return message,
    };
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next() else { return message };
    let known: Vec<&str> = quoted.collect();
    let nearest = known.iter().map(|key| (distance(unknown, key), *key)).min();
    match nearest {
        Some((distance, key)) if distance <= unknown.len().div_ceil(3) => {
            format!("unknown {what} {unknown:?}; did you mean {key:?}?")
        }
        _ => format!("unknown {what} {unknown:?}; write one of {}", known.join(", ")),
    }
}

/// How many letters must be inserted, removed or replaced to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted() {
        for (from, to, expected) in
            [("", "", 0), ("abc", "", 3), ("tire", "tier", 2), ("a", "b", 1)]
        {
            assert_eq!(distance(from, to), expected, "{from} to {to}");
            assert_eq!(distance(to, from), expected, "{to} to {from}");
        }
    }
}
