//! What went wrong, as C gets to know it: a number, and words that the thread keeps.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use extent::{Error, Kind};

use crate::abi;

/// An error on its way to C.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    words: Cow<'static, CStr>,
}

pub(crate) type Outcome<T> = Result<T, Failure>;

thread_local! {
    static LAST: RefCell<Cow<'static, CStr>> = const { RefCell::new(Cow::Borrowed(c"")) };
}

impl Failure {
    /// Words that are known beforehand allocate nothing.
    pub(crate) const fn of(code: i32, words: &'static CStr) -> Self {
        Self { code, words: Cow::Borrowed(words) }
    }

    pub(crate) const fn invalid(words: &'static CStr) -> Self {
        Self::of(abi::INVALID, words)
    }

    pub(crate) fn told(code: i32, words: impl Into<Vec<u8>>) -> Self {
        let mut bytes: Vec<u8> = words.into();
        bytes.retain(|byte| *byte != 0);
        Self { code, words: Cow::Owned(CString::new(bytes).unwrap_or_default()) }
    }

    /// What a call returns for it. Its words are the thread's from now on.
    pub(crate) fn keep(self) -> i32 {
        let code = self.code;
        // A thread that is ending has no place for words.
        let _ = LAST.try_with(|last| last.replace(self.words));
        -code
    }

    #[cfg(test)]
    pub(crate) fn words(&self) -> &CStr {
        &self.words
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::told(i32::from(error.kind().status()), error.to_string())
    }
}

/// The words of this thread's last call that failed.
pub(crate) fn last() -> *const c_char {
    // What the cell holds stays where it is until the next failure.
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// What a code means, of either sign.
pub(crate) fn meaning(code: i32) -> &'static CStr {
    match code.unsigned_abs() {
        0 => c"success",
        1 => c"no such file, generation or handle",
        2 => c"not on the node, and not to be fetched",
        3 => c"the source changed, or the generation is gone",
        4 => c"a higher epoch has taken over",
        5 => c"too much at once, or still in use",
        6 => c"no room",
        7 => c"a checksum does not hold",
        8 => c"a device, a file system or a silo failed",
        9 => c"the node is away",
        10 => c"not allowed",
        11 => c"the call makes no sense",
        12 => c"not supported",
        100 => c"no completion yet",
        101 => c"the memory was lost with its connection",
        102 => c"the ring belongs to another process",
        103 => c"the library broke a rule of its own: close the ring",
        _ => c"an error that this version does not know",
    }
}

/// Each kind has the number of its wire status.
const fn agrees(kind: Kind, code: i32) -> bool {
    kind.status() as i32 == code
}

const _: () = assert!(
    agrees(Kind::NotFound, abi::NOT_FOUND)
        && agrees(Kind::NotResident, abi::NOT_RESIDENT)
        && agrees(Kind::Stale, abi::STALE)
        && agrees(Kind::Fenced, abi::FENCED)
        && agrees(Kind::Busy, abi::BUSY)
        && agrees(Kind::NoSpace, abi::NO_SPACE)
        && agrees(Kind::Corrupt, abi::CORRUPT)
        && agrees(Kind::Io, abi::IO)
        && agrees(Kind::Disconnected, abi::DISCONNECTED)
        && agrees(Kind::Denied, abi::DENIED)
        && agrees(Kind::Invalid, abi::INVALID)
        && agrees(Kind::Unsupported, abi::UNSUPPORTED)
        && Kind::ALL.len() == 12
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_words_of_its_own() {
        let codes = (0..=12).chain(100..=103);
        let mut words: Vec<_> = codes.map(meaning).collect();
        words.push(meaning(i32::MIN));
        let count = words.len();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), count);
        assert_eq!(meaning(-abi::STALE), meaning(abi::STALE));
    }

    #[test]
    fn words_are_kept_until_the_next_failure() {
        let failure = Failure::from(Kind::Stale.error("gone\0 away"));
        assert_eq!(failure.words().to_bytes(), b"gone away");
        assert_eq!(failure.keep(), -abi::STALE);
        assert_eq!(Failure::invalid(c"other").keep(), -abi::INVALID);
        let told = std::thread::spawn(|| LAST.with_borrow(|last| last.to_bytes().len()));
        assert_eq!(told.join().expect("no panic"), 0, "another thread has its own");
        LAST.with_borrow(|last| assert_eq!(last.to_bytes(), b"other"));
    }
}
