//! The interface, a little handier.

use std::ffi::{CStr, CString, c_void};
use std::ptr;

use super::mini::Mini;
use crate::Ring;
use crate::abi::{Cqe, Options};
use crate::calls::{files, reads, rings, words, writes};

/// A ring of so many entries, with a file.
pub(super) struct Rig {
    pub(super) ring: *mut Ring,
    pub(super) file: u64,
}

impl Rig {
    pub(super) fn open(endpoint: &str, entries: u32) -> Self {
        let size = u32::try_from(size_of::<Options>()).expect("small");
        let options = Options { size, entries, ..Options::DEFAULT };
        let endpoint = CString::new(endpoint).expect("no zeroes");
        let (mut ring, mut file) = (ptr::null_mut(), 0);
        // SAFETY: all of these live as long as the call.
        assert_eq!(unsafe { rings::forebay_open(endpoint.as_ptr(), &options, &mut ring) }, 0);
        // SAFETY: likewise.
        let opened = unsafe { files::forebay_file_open(ring, c"data/a".as_ptr(), 0, &mut file) };
        assert_eq!(opened, 0, "{}", last_error());
        Self { ring, file }
    }

    pub(super) fn shared(mini: &Mini, entries: u32) -> Self {
        Self::open(&format!("unix:{}", mini.socket.display()), entries)
    }

    pub(super) fn alloc(&self, length: usize) -> *mut u8 {
        let mut memory = ptr::null_mut();
        // SAFETY: `memory` lives as long as the call.
        let result = unsafe { rings::forebay_alloc(self.ring, length as u64, &mut memory) };
        assert_eq!(result, 0, "{}", last_error());
        memory.cast()
    }

    pub(super) fn register(&self, memory: &mut [u8]) -> i32 {
        let length = memory.len() as u64;
        // SAFETY: whoever calls keeps it until it is given back, or the ring is closed.
        unsafe { rings::forebay_register(self.ring, memory.as_mut_ptr().cast(), length) }
    }

    pub(super) fn free(&self, memory: *mut u8) -> i32 {
        // SAFETY: any address is looked up.
        unsafe { rings::forebay_free(self.ring, memory.cast()) }
    }

    /// Prepares a read. False if the ring is full.
    pub(super) fn read(
        &self,
        buffer: *mut u8,
        length: usize,
        offset: usize,
        user_data: u64,
    ) -> bool {
        // SAFETY: the ring is open.
        let sqe = unsafe { reads::forebay_get_sqe(self.ring) };
        if sqe.is_null() {
            return false;
        }
        let buffer = buffer.cast::<c_void>();
        let (length, offset) = (length as u64, offset as u64);
        // SAFETY: it was just handed out; whoever calls keeps the buffer.
        assert_eq!(unsafe { reads::forebay_prep_read(sqe, self.file, buffer, length, offset) }, 0);
        // SAFETY: likewise.
        unsafe { (*sqe).user_data = user_data };
        true
    }

    pub(super) fn submit(&self) -> i32 {
        // SAFETY: the ring is open; buffers are kept until the reads complete.
        unsafe { reads::forebay_submit(self.ring) }
    }

    /// The next completion, seen.
    pub(super) fn next(&self) -> Cqe {
        let mut cqe = ptr::null();
        // SAFETY: the ring is open, and `cqe` lives as long as the call.
        let waited = unsafe { reads::forebay_wait_cqe(self.ring, &mut cqe, -1) };
        assert_eq!(waited, 0, "{}", last_error());
        // SAFETY: it was just handed out.
        let copy = unsafe { *cqe };
        // SAFETY: likewise.
        assert_eq!(unsafe { reads::forebay_cqe_seen(self.ring, cqe) }, 0);
        copy
    }

    /// The next completion, if there is one.
    pub(super) fn peek(&self) -> Result<Cqe, i32> {
        let mut cqe = ptr::null();
        // SAFETY: the ring is open, and `cqe` lives as long as the call.
        let found = unsafe { reads::forebay_peek_cqe(self.ring, &mut cqe) };
        assert_eq!(found == 0, !cqe.is_null());
        // SAFETY: it was just handed out.
        if found == 0 { Ok(unsafe { *cqe }) } else { Err(found) }
    }

    /// Another file, or the error.
    pub(super) fn open_file(&self, name: &CStr) -> Result<u64, i32> {
        let mut file = 0;
        // SAFETY: `file` lives as long as the call.
        let opened = unsafe { files::forebay_file_open(self.ring, name.as_ptr(), 0, &mut file) };
        if opened == 0 { Ok(file) } else { Err(opened) }
    }

    pub(super) fn close_file(&self, file: u64) -> i32 {
        // SAFETY: any number is looked up.
        unsafe { files::forebay_file_close(self.ring, file) }
    }

    pub(super) fn create(&self, name: &CStr) -> u64 {
        let mut writer = 0;
        // SAFETY: `writer` lives as long as the call.
        let begun = unsafe { writes::forebay_create(self.ring, name.as_ptr(), 0, &mut writer) };
        assert_eq!(begun, 0, "{}", last_error());
        writer
    }

    pub(super) fn write(&self, writer: u64, bytes: &[u8], offset: u64) -> i32 {
        let (from, length) = (bytes.as_ptr().cast(), bytes.len() as u64);
        // SAFETY: the bytes are there.
        unsafe { writes::forebay_write(self.ring, writer, from, length, offset) }
    }

    /// The generation, or the error.
    pub(super) fn commit(&self, writer: u64, length: u64) -> Result<u64, i32> {
        let mut generation = 0;
        // SAFETY: `generation` lives as long as the call.
        let committed =
            unsafe { writes::forebay_commit(self.ring, writer, length, &mut generation) };
        if committed == 0 { Ok(generation) } else { Err(committed) }
    }

    pub(super) fn only(&self, buffer: *mut u8, length: usize, offset: usize) -> Cqe {
        assert!(self.read(buffer, length, offset, 1));
        assert_eq!(self.submit(), 1);
        self.next()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // SAFETY: once.
        let closed = unsafe { rings::forebay_close(self.ring) };
        assert!(closed == 0 || std::thread::panicking(), "{}", last_error());
    }
}

pub(super) fn last_error() -> String {
    // SAFETY: the words are this thread's.
    let words = unsafe { CStr::from_ptr(words::forebay_last_error()) };
    words.to_string_lossy().into_owned()
}

/// What is at an address that no read is under way to.
pub(super) fn at<'a>(memory: *const u8, length: usize) -> &'a [u8] {
    // SAFETY: as whoever calls knows.
    unsafe { std::slice::from_raw_parts(memory, length) }
}

pub(super) fn endpoints(mini: &Mini) -> [String; 2] {
    [format!("unix:{}", mini.socket.display()), format!("tcp://{}", mini.address)]
}
