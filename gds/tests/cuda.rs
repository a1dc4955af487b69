//! CUDA's side of the seam, over a driver without a GPU: `fake_cuda.c`, which is compiled here. What it does
//! not show is what a real driver does.
#![allow(unsafe_code)]

mod exported;
mod suite;

use std::ffi::c_int;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use extent::Kind;
use forebay_gds::{CudaDriver, Device, Pinning};
use suite::{CHECKS, PATIENCE, bytes, finish, ring};

/// The driver is one for the process: tests take turns.
static TURN: Mutex<()> = Mutex::new(());

struct Fake {
    library: libloading::Library,
    path: PathBuf,
}

impl Fake {
    /// A driver of its own for each name, since what is open stays open.
    fn build(name: &str) -> Self {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_cuda.c");
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = directory.join(format!("libfake-cuda-{name}.so"));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(&path)
            .args([source, "-lpthread"])
            .status();
        assert!(compiled.expect("a C compiler").success());
        // SAFETY: it does nothing when it is loaded.
        let library = unsafe { libloading::Library::new(&path) }.expect("it loads");
        Self { library, path }
    }

    fn driver(&self) -> extent::Result<&'static CudaDriver> {
        CudaDriver::open(self.path.to_str().expect("plain"))
    }

    fn turn(&self, name: &str, value: c_int) {
        // SAFETY: as it is defined there.
        let knob = unsafe { self.library.get::<unsafe extern "C" fn(c_int)>(name) };
        // SAFETY: it sets a number.
        unsafe { knob.expect("there")(value) };
    }

    fn flushes(&self) -> c_int {
        // SAFETY: as it is defined there.
        let look =
            unsafe { self.library.get::<unsafe extern "C" fn() -> c_int>("fake_cuda_flushes") };
        // SAFETY: it reads a number.
        unsafe { look.expect("there")() }
    }

    /// Bytes of memory, pinned ranges, streams, events, contexts, and those of this thread.
    fn left(&self) -> [usize; 6] {
        let mut left = [0; 6];
        // SAFETY: as it is defined there.
        let look =
            unsafe { self.library.get::<unsafe extern "C" fn(*mut usize)>("fake_cuda_left") };
        // SAFETY: it writes six numbers.
        unsafe { look.expect("there")(left.as_mut_ptr()) };
        left
    }
}

#[test]
fn what_every_device_does_cuda_does() {
    let _turn = TURN.lock();
    let fake = Fake::build("suite");
    let driver = fake.driver().expect("a driver");
    assert_eq!((driver.devices().len(), driver.devices()[0].dma_buf), (1, true));
    assert_eq!(driver.devices()[0].name, "a driver without a GPU, 40");
    assert_eq!(driver.device(1).expect_err("one only").kind(), Kind::NotFound);
    {
        // Whoever asks for a GPU gets the same one.
        let (one, other) = (driver.device(0).expect("a device"), driver.device(0).expect("again"));
        let memory = other.allocate(100).expect("device memory");
        let mut ring = ring(&one, 1, 4096, Pinning::Require);
        let (lent, piece) = ring.lend().expect("free");
        ring.copy(lent, piece, 0..100, &memory.all()).expect("the same device");
        finish(&mut ring);
    }
    assert_eq!(fake.left(), [0; 6]);
    for (name, check) in CHECKS {
        let device = driver.device(0).expect("a device");
        check(&device);
        drop(device);
        assert_eq!(fake.left(), [0; 6], "left behind by {name}");
    }
}

#[test]
fn a_driver_without_a_gpu_says_so() {
    let _turn = TURN.lock();
    let error = CudaDriver::open("libcuda-that-nobody-has.so.1").err().expect("absent");
    assert_eq!(error.kind(), Kind::NotFound);
    let fake = Fake::build("bare");
    fake.turn("fake_cuda_has_gpu", 0);
    let error = fake.driver().err().expect("no GPU");
    assert_eq!(error.kind(), Kind::Unsupported);
    let said = error.to_string();
    assert!(said.contains("no GPU (cuInit: 100 CUDA_ERROR_NO_DEVICE, no CUDA-capable"), "{said}");
}

#[test]
fn errors_of_the_driver_are_told_apart() {
    let _turn = TURN.lock();
    let fake = Fake::build("errors");
    let device: Device = fake.driver().expect("a driver").device(0).expect("a device");
    let mut ring = ring(&device, 2, 4096, Pinning::Require);
    let memory = device.allocate(4096).expect("device memory");
    let mut send = |answer| {
        fake.turn("fake_cuda_next_copy", answer);
        let (lent, mut piece) = ring.lend().expect("free");
        piece.fill(0, &bytes(100, 1));
        let outcome = ring.copy(lent, piece, 0..100, &memory.all());
        (outcome.map(drop), ring.available(), ring.missing())
    };
    for (answer, kind, free) in
        [(1, Kind::Invalid, 2), (2, Kind::NoSpace, 2), (801, Kind::Unsupported, 2)]
    {
        let (outcome, available, missing) = send(answer);
        let error = outcome.expect_err("refused");
        assert_eq!((error.kind(), available, missing), (kind, free, 0), "{error}");
    }
    assert!(send(0).0.is_ok());
    // Nobody knows what a context that failed still does: what it may read is kept.
    let (outcome, available, missing) = send(719);
    let error = outcome.expect_err("lost");
    assert_eq!((error.kind(), available, missing), (Kind::Disconnected, 0, 1));
    assert!(error.to_string().contains("719 CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    fake.turn("fake_cuda_lose", 1);
    let mut ended = Vec::new();
    ring.wait(PATIENCE, &mut ended);
    let error = ended.pop().expect("it is over").result.expect_err("lost");
    assert_eq!((error.kind(), ring.missing()), (Kind::Disconnected, 2));
}

#[test]
fn what_others_write_to_exported_memory_cuda_has() {
    let _turn = TURN.lock();
    let fake = Fake::build("export");
    let device: Device = fake.driver().expect("a driver").device(0).expect("a device");
    exported::check_written(&device);
    assert_eq!(fake.flushes(), 1);
    // A GPU that keeps the order by itself is not told.
    fake.turn("fake_cuda_ordering", 100);
    exported::check_written(&device);
    assert_eq!(fake.flushes(), 1);
    let memory = device.allocate(1 << 20).expect("device memory");
    let allocation = memory.all().allocation().expect("there");
    for (knob, value, words) in [
        ("fake_cuda_pooled", 1, "cuMemAlloc"),
        ("fake_cuda_exports", 0, "801 CUDA_ERROR_NOT_SUPPORTED"),
    ] {
        fake.turn(knob, value);
        let error = device.export(&allocation).expect_err("not here");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(words), "{error}");
        fake.turn(knob, 1 - value);
    }
    device.export(&allocation).expect("again");
    drop((memory, device));
    assert_eq!(fake.left(), [0; 6]);
}
