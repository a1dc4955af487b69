use std::fmt;
use std::str::FromStr;

use extent::{Error, Kind};

/// Where a PCI function is: `domain:bus:device.function`, all hexadecimal, such as `0000:5e:00.0`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Whether a text has the form of an address, with or without its domain.
    #[must_use]
    pub fn looks_like_one(text: &str) -> bool {
        text.parse::<Self>().is_ok()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl FromStr for PciAddress {
    type Err = Error;

    /// Parses an address; without a domain it is in the first.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it is none.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| {
            Kind::Invalid.error(format!(
                "{text} is no PCI address: those look like 0000:5e:00.0 (`forebay device list` \
                 shows them)"
            ))
        })
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.split_once(':').unwrap_or(("0", rest));
    let hex = |digits: &str, most: usize| {
        let sound = (1..=most).contains(&digits.len())
            && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        sound.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    };
    Some(PciAddress {
        domain: hex(domain, 8)?,
        bus: u8::try_from(hex(bus, 2)?).ok()?,
        device: u8::try_from(hex(device, 2)?).ok().filter(|device| *device < 32)?,
        function: u8::try_from(hex(function, 1)?).ok().filter(|function| *function < 8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed_and_printed() {
        for (text, printed) in [
            ("0000:5e:00.0", "0000:5e:00.0"),
            ("5e:1f.7", "0000:5e:1f.7"),
            ("10000:E1:00.0", "10000:e1:00.0"),
        ] {
            let address: PciAddress = text.parse().expect("an address");
            assert_eq!(address.to_string(), printed);
        }
        for text in ["", "5e", "5e:00", "0000:5e:20.0", "0000:5e:00.8", "/dev/nvme0n1", "a:b:c:d.0"]
        {
            assert!(!PciAddress::looks_like_one(text), "{text}");
        }
        let error = "x".parse::<PciAddress>().expect_err("none").to_string();
        assert!(error.contains("forebay device list"), "{error}");
    }
}
