//! What a program asks of a ring, checked.
#![expect(unsafe_code, reason = "C hands structs and strings over")]

use std::ffi::{CStr, c_char};
use std::ptr;
use std::time::Duration;

use client::ProofSource;
use extent::Proof;

use crate::abi::{self, Options};
use crate::failure::{Failure, Outcome};
use crate::pool::{LARGE_BYTES, LEAST_BYTES, SMALL_BYTES};

const DEFAULT_ENTRIES: u32 = 256;
const MOST_ENTRIES: u32 = 1 << 16;
const DEFAULT_COPY_BYTES: u64 = 16 << 20;
const MOST_COPY_BYTES: u64 = 1 << 40;
/// Longer than anybody waits; longer times end where clocks do.
const LONGEST_US: u64 = 365 * 86_400 * 1_000_000;
/// Operations beside the reads: opens, closes, and a write.
const OTHERS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) entries: usize,
    pub(crate) copy_bytes: usize,
    pub(crate) timeout: Duration,
    pub(crate) spin: Duration,
    pub(crate) session: client::Options,
}

impl Settings {
    /// Checks options, which may be null.
    ///
    /// # Errors
    /// What is wrong with them.
    ///
    /// # Safety
    /// If they are not null, `size` bytes can be read there, and `proof` is null or a string.
    pub(crate) unsafe fn read(options: *const Options) -> Outcome<Self> {
        let options = if options.is_null() {
            Options::DEFAULT
        } else {
            // SAFETY: as the caller promises.
            unsafe { sized(options, Options::DEFAULT) }?
        };
        if options.flags & !(abi::VERIFY | abi::NO_RECONNECT) != 0 {
            return Err(Failure::invalid(c"forebay_options.flags has bits that mean nothing"));
        }
        let entries = or(options.entries, DEFAULT_ENTRIES);
        if entries > MOST_ENTRIES {
            return Err(Failure::invalid(c"forebay_options.entries: 65536 is the most"));
        }
        let Ok(credits) = u16::try_from(or(options.credits, 256)) else {
            return Err(Failure::invalid(c"forebay_options.credits: 65535 is the most"));
        };
        let least = LEAST_BYTES as u64;
        let copy_bytes = match or(options.copy_bytes, DEFAULT_COPY_BYTES) {
            bytes if (least..=MOST_COPY_BYTES).contains(&bytes) => usize::try_from(bytes),
            _ => return Err(Failure::invalid(c"forebay_options.copy_bytes: 2 MiB to 1 TiB")),
        };
        let copy_bytes = copy_bytes.map_err(|_| Failure::invalid(c"more than memory has"))?;
        let defaults = client::Options::default();
        let timeout = time(options.timeout_us).unwrap_or(defaults.timeout);
        let entries = usize::try_from(entries).unwrap_or(usize::MAX);
        let copies = copy_bytes / SMALL_BYTES / 2 + copy_bytes / LARGE_BYTES / 2;
        let session = client::Options {
            credits,
            queue: entries + copies + OTHERS,
            verify: options.flags & abi::VERIFY != 0,
            timeout,
            connect_timeout: time(options.connect_timeout_us).unwrap_or(defaults.connect_timeout),
            reconnect: defaults.reconnect.filter(|_| options.flags & abi::NO_RECONNECT == 0),
            // SAFETY: as the caller promises.
            proof: unsafe { proof(options.proof) }?,
            ..defaults
        };
        let spin = time(options.spin_us).unwrap_or_default();
        Ok(Self { entries, copy_bytes, timeout, spin, session })
    }
}

fn or<T: Default + PartialEq>(value: T, default: T) -> T {
    if value == T::default() { default } else { value }
}

fn time(microseconds: u64) -> Option<Duration> {
    (microseconds != 0).then(|| Duration::from_micros(microseconds.min(LONGEST_US)))
}

/// # Safety
/// It is null or a string.
unsafe fn proof(digits: *const c_char) -> Outcome<Option<ProofSource>> {
    if digits.is_null() {
        return Ok(None);
    }
    // SAFETY: as the caller promises.
    let digits = unsafe { text(digits) }?;
    Ok(Some(ProofSource::from(digits.parse::<Proof>()?)))
}

/// A string of C's.
///
/// # Errors
/// If it is null or not UTF-8.
///
/// # Safety
/// It is null, or ends with a zero byte and does not change before the result is dropped.
pub(crate) unsafe fn text<'a>(string: *const c_char) -> Outcome<&'a str> {
    if string.is_null() {
        return Err(Failure::invalid(c"a string is a null pointer"));
    }
    // SAFETY: as the caller promises.
    let string = unsafe { CStr::from_ptr(string) };
    string.to_str().map_err(|_| Failure::invalid(c"a string is not UTF-8"))
}

/// A struct that begins with its size in bytes.
pub(crate) trait Sized: Copy {
    /// The shortest that there ever was.
    const FIRST_BYTES: usize;
}

impl Sized for Options {
    const FIRST_BYTES: usize = 56;
}

impl Sized for abi::Caps {
    const FIRST_BYTES: usize = 64;
}

/// The longest that is believed to be meant.
const LONGEST_STRUCT: usize = 4096;

/// The bytes of a struct of C's, as its first field says.
///
/// # Errors
/// If that is nonsense.
///
/// # Safety
/// It is not null, and its first field can be read.
pub(crate) unsafe fn size_of<T: Sized>(from: *const T) -> Outcome<usize> {
    // SAFETY: as the caller promises; every such struct begins with it.
    let size = unsafe { from.cast::<u32>().read_unaligned() };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if (T::FIRST_BYTES..=LONGEST_STRUCT).contains(&size) {
        return Ok(size);
    }
    Err(Failure::invalid(c"a struct's size is not that of any version: set it to sizeof"))
}

/// Reads a struct of this version, or of an older or newer one.
///
/// # Safety
/// It is not null, and as many bytes can be read there as its first field says.
unsafe fn sized<T: Sized>(from: *const T, defaults: T) -> Outcome<T> {
    // SAFETY: as the caller promises.
    let size = unsafe { size_of(from) }?;
    let known = std::mem::size_of::<T>();
    let mut value = defaults;
    // SAFETY: both have so many bytes, and all of C's are numbers or pointers.
    unsafe {
        ptr::copy_nonoverlapping(from.cast::<u8>(), (&raw mut value).cast(), size.min(known));
    };
    for at in known..size {
        // SAFETY: as the caller promises.
        let byte = unsafe { from.cast::<u8>().add(at) };
        // SAFETY: likewise.
        if unsafe { byte.read() } != 0 {
            return Err(Failure::of(
                abi::UNSUPPORTED,
                c"a struct is of a newer version, and asks for what this library does not know",
            ));
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header from the future.
    #[repr(C)]
    struct Longer {
        options: Options,
        news: u64,
    }

    fn options(bytes: usize) -> Options {
        Options { size: u32::try_from(bytes).expect("small"), ..Options::DEFAULT }
    }

    fn read(options: &Options) -> Outcome<Settings> {
        // SAFETY: it is as long as its size says in all of these tests, or refused for its size.
        unsafe { Settings::read(options) }
    }

    const BYTES: usize = std::mem::size_of::<Options>();

    #[test]
    fn nothing_said_is_the_default() {
        // SAFETY: null is allowed.
        let settings = unsafe { Settings::read(ptr::null()) }.expect("defaults");
        assert_eq!((settings.entries, settings.session.credits), (256, 256));
        assert_eq!(settings.timeout, Duration::from_secs(60));
        assert!(settings.session.reconnect.is_some() && !settings.session.verify);
        let same = read(&options(BYTES)).expect("defaults");
        assert_eq!(format!("{settings:?}"), format!("{same:?}"));
    }

    #[test]
    fn nonsense_is_refused() {
        for size in [0, 4, BYTES - 8, LONGEST_STRUCT + 1] {
            assert_eq!(read(&options(size)).expect_err("a strange size").code, abi::INVALID);
        }
        let good = options(BYTES);
        for bad in [
            Options { flags: 4, ..good },
            Options { entries: (1 << 16) + 1, ..good },
            Options { credits: 1 << 16, ..good },
            Options { copy_bytes: 4096, ..good },
            Options { proof: c"secret".as_ptr(), ..good },
            Options { proof: c"\xff".as_ptr(), ..good },
        ] {
            assert_eq!(read(&bad).expect_err("nonsense").code, abi::INVALID);
        }
        let all = Options { timeout_us: u64::MAX, entries: 1, flags: 3, ..good };
        let all = read(&all).expect("taken");
        assert!(all.session.verify && all.session.reconnect.is_none());
        assert!(all.timeout > Duration::from_secs(86_400) && all.entries == 1);
    }

    #[test]
    fn structs_of_a_newer_header_are_taken_if_they_ask_for_nothing_new() {
        let mut longer = Longer { options: options(std::mem::size_of::<Longer>()), news: 0 };
        // SAFETY: it is as long as its size says.
        assert!(unsafe { Settings::read((&raw const longer).cast()) }.is_ok());
        longer.news = 1;
        // SAFETY: likewise.
        let refused = unsafe { Settings::read((&raw const longer).cast()) };
        assert_eq!(refused.expect_err("news").code, abi::UNSUPPORTED);
    }
}
