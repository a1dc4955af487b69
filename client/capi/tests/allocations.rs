//! Between a request and its completion nothing is allocated, once a ring has warmed up.
#![expect(unsafe_code, reason = "an allocator that counts, and the calls that C makes")]

#[path = "../../tests/mini/mod.rs"]
mod mini;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::CString;
use std::ptr;

use forebay::Ring;
use forebay::calls::{files, reads, rings};
use mini::Mini;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

/// The system's, and counts for each thread what it is asked for.
struct Counting;

// SAFETY: everything is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEPTH: u64 = 16;
const LENGTH: u64 = 4096;

/// So many rounds of reads at full depth into this memory.
fn rounds(ring: *mut Ring, file: u64, memory: *mut u8, count: u64) {
    for round in 0..count {
        for read in 0..DEPTH {
            // SAFETY: the ring is open, and has room for so many.
            let sqe = unsafe { reads::forebay_get_sqe(ring) };
            let at = usize::try_from(read * LENGTH).expect("small");
            let (into, offset) = (memory.wrapping_add(at).cast(), (round + read) * LENGTH);
            // SAFETY: it was just handed out, and the memory stays.
            assert_eq!(unsafe { reads::forebay_prep_read(sqe, file, into, LENGTH, offset) }, 0);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { reads::forebay_submit(ring) }, 16);
        for _ in 0..DEPTH {
            let mut cqe = ptr::null();
            // SAFETY: `cqe` lives as long as the call.
            assert_eq!(unsafe { reads::forebay_wait_cqe(ring, &mut cqe, -1) }, 0);
            // SAFETY: it was just handed out.
            assert_eq!(unsafe { (*cqe).result }, 4096);
            // SAFETY: likewise.
            assert_eq!(unsafe { reads::forebay_cqe_seen(ring, cqe) }, 0);
        }
    }
}

#[test]
fn reads_allocate_nothing() {
    let mini = Mini::start(vec![5; 1 << 20]);
    for endpoint in [format!("unix:{}", mini.socket.display()), format!("tcp://{}", mini.address)] {
        let (mut ring, mut file, mut direct) = (ptr::null_mut(), 0, ptr::null_mut());
        let endpoint = CString::new(endpoint).expect("no zeroes");
        // SAFETY: all of these live as long as the call.
        assert_eq!(unsafe { rings::forebay_open(endpoint.as_ptr(), ptr::null(), &mut ring) }, 0);
        // SAFETY: likewise.
        let opened = unsafe { files::forebay_file_open(ring, c"data/a".as_ptr(), 0, &mut file) };
        assert_eq!(opened, 0);
        // SAFETY: likewise.
        assert_eq!(unsafe { rings::forebay_alloc(ring, DEPTH * LENGTH, &mut direct) }, 0);
        let mut own = vec![0u8; 16 * 4096];
        for memory in [direct.cast(), own.as_mut_ptr()] {
            rounds(ring, file, memory, 20);
            let before = COUNT.get();
            assert_ne!(before, 0, "what is allocated is counted");
            rounds(ring, file, memory, 50);
            assert_eq!(COUNT.get() - before, 0, "{endpoint:?}");
        }
        // SAFETY: once.
        assert_eq!(unsafe { rings::forebay_close(ring) }, 0);
    }
}
