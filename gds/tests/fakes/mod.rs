//! A driver and a cuFile without a GPU, compiled here: a pair of their own for each who asks, since what is open
//! stays open.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use forebay_gds::{CuFile, CudaDriver, Device};
use tempfile::TempDir;

/// What `fake_cufile_left` tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Left {
    pub(crate) files: usize,
    pub(crate) buffers: usize,
    pub(crate) drivers: usize,
    pub(crate) violations: usize,
    pub(crate) longest: usize,
    pub(crate) calls: usize,
}

pub(crate) struct Fakes {
    /// Files of the test's own are in it, too.
    pub(crate) directory: TempDir,
    cuda: libloading::Library,
    cufile: libloading::Library,
}

impl Fakes {
    pub(crate) fn new() -> Self {
        let parent = env!("CARGO_TARGET_TMPDIR");
        let directory = TempDir::new_in(parent).expect("a directory");
        let load = |name: &str, source| {
            let path = directory.path().join(name);
            std::fs::copy(compiled(source), &path).expect("copied");
            // SAFETY: it does nothing when it is loaded.
            unsafe { libloading::Library::new(&path) }.expect("it loads")
        };
        let cuda = load("libcuda.so.1", "fake_cuda.c");
        let cufile = load("libcufile.so.0", "fake_cufile.c");
        let fakes = Self { directory, cuda, cufile };
        fakes.name("fake_cufile_cuda", &fakes.path("libcuda.so.1"));
        fakes.name("fake_cufile_stats", &fakes.path("stats"));
        fakes
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn device(&self) -> Device {
        let path = self.path("libcuda.so.1");
        let driver = CudaDriver::open(path.to_str().expect("plain")).expect("a driver");
        driver.device(0).expect("a device")
    }

    pub(crate) fn cufile(&self) -> extent::Result<&'static CuFile> {
        let path = self.path("libcufile.so.0");
        CuFile::open(path.to_str().expect("plain"), &self.path("stats"))
    }

    /// Turns one of the fake cuFile's knobs.
    pub(crate) fn turn(&self, name: &str, value: c_int) {
        turn(&self.cufile, &format!("fake_cufile_{name}"), value);
    }

    /// The device falls off its bus, or comes back.
    pub(crate) fn lose(&self, it: bool) {
        turn(&self.cuda, "fake_cuda_lose", c_int::from(it));
    }

    /// Bytes of device memory that were not freed.
    pub(crate) fn device_bytes(&self) -> usize {
        self.numbers(&self.cuda, "fake_cuda_left")[0]
    }

    pub(crate) fn left(&self) -> Left {
        let [files, buffers, drivers, violations, longest, calls] =
            self.numbers(&self.cufile, "fake_cufile_left");
        Left { files, buffers, drivers, violations, longest, calls }
    }

    fn numbers(&self, library: &libloading::Library, name: &str) -> [usize; 6] {
        let mut numbers = [0; 6];
        // SAFETY: as it is defined there.
        let look = unsafe { library.get::<unsafe extern "C" fn(*mut usize)>(name) };
        // SAFETY: it writes six numbers.
        unsafe { look.expect("there")(numbers.as_mut_ptr()) };
        numbers
    }

    fn name(&self, name: &str, path: &Path) {
        let path = CString::new(path.to_str().expect("plain")).expect("no zero");
        // SAFETY: as it is defined there.
        let knob = unsafe { self.cufile.get::<unsafe extern "C" fn(*const c_char)>(name) };
        // SAFETY: it reads the string.
        unsafe { knob.expect("there")(path.as_ptr()) };
    }
}

fn turn(library: &libloading::Library, name: &str, value: c_int) {
    // SAFETY: as it is defined there.
    let knob = unsafe { library.get::<unsafe extern "C" fn(c_int)>(name) };
    // SAFETY: it sets a number.
    unsafe { knob.expect("there")(value) };
}

/// A library of the tests, compiled once.
fn compiled(source: &'static str) -> PathBuf {
    static BUILT: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());
    let name = format!("{}-{source}.so", env!("CARGO_CRATE_NAME"));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !built.contains(source) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gds/tests").join(source);
        let outcome = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&path)
            .arg(from)
            .args(["-lpthread", "-ldl"])
            .status();
        assert!(outcome.expect("a C compiler").success());
        built.insert(source);
    }
    path
}
