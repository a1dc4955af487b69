use super::{u16_at, u128_at};

/// What a device says about its own state: the SMART / Health Information log page (Base 5.16.1.3).
/// Counters that do not fit stay at their largest value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Health {
    /// Critical Warning: a bit for each thing that is wrong.
    pub critical_warning: u8,
    /// Composite Temperature, in degrees Celsius.
    pub temperature_celsius: i32,
    /// Available Spare, in percent of what was there when new.
    pub available_spare_percent: u8,
    /// Available Spare Threshold: below it the device warns.
    pub spare_threshold_percent: u8,
    /// Percentage Used of the device's life; may exceed 100.
    pub used_percent: u8,
    /// Data Units Read, in bytes.
    pub read_bytes: u64,
    /// Data Units Written, in bytes.
    pub written_bytes: u64,
    /// Power On Hours.
    pub power_on_hours: u64,
    /// Unsafe Shutdowns.
    pub unsafe_shutdowns: u64,
    /// Media and Data Integrity Errors.
    pub media_errors: u64,
}

/// The warnings of Critical Warning, from bit 0 on.
const WARNINGS: [&str; 6] = [
    "available spare is below its threshold",
    "the temperature is out of bounds",
    "the device has become unreliable",
    "the media is read-only",
    "the backup of volatile memory has failed",
    "persistent memory has become unreliable",
];

/// Bytes of the log page.
pub(in crate::device) const HEALTH_BYTES: usize = 512;

impl Health {
    /// From a log page.
    ///
    /// # Panics
    /// If it is shorter than [`HEALTH_BYTES`].
    pub(in crate::device) fn parse(page: &[u8]) -> Self {
        assert!(page.len() >= HEALTH_BYTES, "a log page of {} bytes", page.len());
        // Data units are thousands of 512 bytes.
        let bytes = |at| narrow(u128_at(page, at).saturating_mul(512_000));
        let kelvin = i32::from(u16_at(page, 1));
        Self {
            critical_warning: page[0],
            temperature_celsius: kelvin - 273,
            available_spare_percent: page[3],
            spare_threshold_percent: page[4],
            used_percent: page[5],
            read_bytes: bytes(32),
            written_bytes: bytes(48),
            power_on_hours: narrow(u128_at(page, 128)),
            unsafe_shutdowns: narrow(u128_at(page, 144)),
            media_errors: narrow(u128_at(page, 160)),
        }
    }

    /// What the device warns of, in words.
    pub fn warnings(&self) -> impl Iterator<Item = &'static str> {
        let warned = self.critical_warning;
        WARNINGS
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| warned >> bit & 1 != 0)
            .map(|(_, w)| w)
    }
}

fn narrow(value: u128) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// What an asynchronous event says (Base 5.2.1): the first dword of its completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device) struct AsynchronousEvent(pub(in crate::device) u32);

impl AsynchronousEvent {
    /// Asynchronous Event Type.
    pub(in crate::device) fn kind(self) -> &'static str {
        match self.0 & 0b111 {
            0 => "error status",
            1 => "SMART / health status",
            2 => "notice",
            6 => "I/O command specific status",
            7 => "vendor specific",
            _ => "of an unknown type",
        }
    }

    /// Asynchronous Event Information.
    pub(in crate::device) fn information(self) -> u8 {
        self.0.to_le_bytes()[1]
    }

    /// Log Page Identifier: reading that page lets the next event of this type come.
    pub(in crate::device) fn log_page(self) -> u8 {
        self.0.to_le_bytes()[2]
    }

    /// Whether the namespaces have changed: Namespace Attribute Changed, a notice.
    pub(in crate::device) fn says_namespaces_changed(self) -> bool {
        self.0 & 0b111 == 2 && self.information() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_page_is_read_and_warns() {
        let mut page = [0; HEALTH_BYTES];
        page[0] = 0b1001;
        page[1..3].copy_from_slice(&310u16.to_le_bytes());
        page[3] = 9;
        page[32] = 2;
        page[48..64].fill(0xff);
        page[144] = 5;
        let health = Health::parse(&page);
        assert_eq!((health.temperature_celsius, health.unsafe_shutdowns), (37, 5));
        assert_eq!((health.read_bytes, health.written_bytes), (1_024_000, u64::MAX));
        let warnings: Vec<_> = health.warnings().collect();
        assert_eq!(warnings, [WARNINGS[0], WARNINGS[3]]);
    }
}
