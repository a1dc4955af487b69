//! Sizes, durations, ranges and names as people write and read them.

use std::time::Duration;

use extent::{ByteRange, Kind, Result};
use serde::{Deserialize, Deserializer, de};

/// A number of bytes, written as `4096`, `"16GiB"`, `"1.5MiB"` or `"2GB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Bytes(pub(crate) u64);

const BINARY: [(&str, u64); 4] = [("k", 10), ("m", 20), ("g", 30), ("t", 40)];

impl std::str::FromStr for Bytes {
    type Err = extent::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Kind::Invalid.error(format!("{text:?} is not a size: write 4096, 64KiB, 16GiB or 2GB"))
        };
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim().to_ascii_lowercase();
        let scale = match unit.as_str() {
            "" | "b" => 1,
            _ => {
                let of = |(letter, bits): &(&str, u64)| {
                    let rest = unit.strip_prefix(letter)?;
                    match rest {
                        "" | "ib" => Some(1 << bits),
                        "b" => Some(1000_u64.pow(u32::try_from(bits / 10).ok()?)),
                        _ => None,
                    }
                };
                BINARY.iter().find_map(of).ok_or_else(bad)?
            }
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(scale).map(Self).ok_or_else(bad);
        }
        let number: f64 = number.parse().map_err(|_| bad())?;
        float_to_u64(number * to_f64(scale)).map(Self).ok_or_else(bad)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer).map_err(|_| {
            de::Error::custom("a size is a number of bytes, or text such as \"4MiB\"")
        })? {
            Either::Number(bytes) => Ok(Self(bytes)),
            Either::Text(text) => text.parse().map_err(|e| de::Error::custom(message(&e))),
        }
    }
}

fn message(error: &extent::Error) -> String {
    error.context().to_owned()
}

/// A span of time, written as `"500ms"`, `"30s"`, `"15m"`, `"12h"` or `"7d"`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let bad = || {
        Kind::Invalid.error(format!("{text:?} is not a duration: write 500ms, 30s, 15m, 12h or 7d"))
    };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit.trim() {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(bad()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(bad)
}

/// A range of bytes, written as `A..B` (B exclusive), such as `0..64MiB`.
pub(crate) fn range(text: &str) -> Result<ByteRange> {
    let bad = || {
        Kind::Invalid.error(format!(
            "{text:?} is not a range: write FROM..TO with TO excluded, such as 0..64MiB"
        ))
    };
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let from: Bytes = if from.is_empty() { Bytes(0) } else { from.parse()? };
    let to: Bytes = to.parse().map_err(|_| bad())?;
    let length = to.0.checked_sub(from.0).filter(|length| *length > 0).ok_or_else(bad)?;
    ByteRange::new(from.0, length)
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    let Some((letter, bits)) = BINARY.iter().rev().find(|(_, bits)| count >> bits > 0) else {
        return format!("{count} B");
    };
    let value = to_f64(count) / to_f64(1 << bits);
    let letter = if *letter == "k" { "K".to_owned() } else { letter.to_ascii_uppercase() };
    let tenths = (value * 10.0).round() / 10.0;
    let digits = usize::from(tenths < 10.0 && tenths.fract() != 0.0);
    format!("{value:.digits$} {letter}iB")
}

/// A speed for people, in the decimal units that devices and networks are sold in.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    match bytes_per_second {
        rate if rate >= 1e9 => format!("{:.2} GB/s", rate / 1e9),
        rate if rate >= 1e6 => format!("{:.0} MB/s", rate / 1e6),
        rate => format!("{:.0} kB/s", rate / 1e3),
    }
}

/// A short time for people: `840 ns`, `12.3 µs`, `4.1 ms`, `2.0 s`.
pub(crate) fn nanos(count: u64) -> String {
    let value = to_f64(count);
    match count {
        0..1_000 => format!("{count} ns"),
        1_000..1_000_000 => format!("{:.1} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.1} s", value / 1e9),
    }
}

/// A count for people: `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2 files`.
pub(crate) fn plural(value: u64, noun: &str) -> String {
    let ending = if value == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", count(value))
}

/// How much of `whole` `part` is, from 0 to 1; 0 of nothing.
pub(crate) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { to_f64(part) / to_f64(whole) }
}

/// The nearest float; exact below 2^53, and good enough for showing anything above.
#[expect(clippy::cast_precision_loss, reason = "shown to people with three digits")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}

/// The nearest whole number; 0 for what is negative or no number.
pub(crate) fn round(value: f64) -> u64 {
    float_to_u64(value.round()).unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the guard admits only what fits"
)]
fn float_to_u64(value: f64) -> Option<u64> {
    (value >= 0.0 && value < to_f64(u64::MAX)).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_as_written() {
        let good = [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65536),
            ("64k", 65536),
            ("1.5MiB", 3 << 19),
            ("2GB", 2_000_000_000),
            ("16 GiB", 16 << 30),
            ("1T", 1 << 40),
        ];
        for (text, expected) in good {
            assert_eq!(text.parse::<Bytes>().expect(text), Bytes(expected), "{text}");
        }
        for bad in ["", "GiB", "-1", "4XB", "1.2.3", "99999999999GiB", "4 KiBB"] {
            let error = bad.parse::<Bytes>().expect_err(bad);
            assert_eq!(error.kind(), Kind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn durations_and_ranges_parse_as_written() {
        assert_eq!(duration("12h").expect("good"), Duration::from_secs(43200));
        assert_eq!(duration("500ms").expect("good"), Duration::from_millis(500));
        for bad in ["", "12", "h", "1.5h", "12 parsecs", "99999999999999999999s"] {
            duration(bad).expect_err(bad);
        }
        let parsed = range("4KiB..1MiB").expect("good");
        assert_eq!((parsed.offset(), parsed.end()), (4096, 1 << 20));
        assert_eq!(range("..10").expect("good").end(), 10);
        for bad in ["", "5", "5..", "9..3", "3..3", "a..b"] {
            range(bad).expect_err(bad);
        }
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!((bytes(4095).as_str(), bytes(4097).as_str()), ("4 KiB", "4 KiB"));
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(160 << 30), "160 GiB");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(nanos(12_340), "12.3 µs");
        assert_eq!(rate(2.5e9), "2.50 GB/s");
        assert_eq!(plural(1, "file"), "1 file");
    }
}
