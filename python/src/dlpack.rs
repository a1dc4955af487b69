//! DLPack, by which tensor libraries show each other memory: the C structures of
//! <https://dmlc.github.io/dlpack/latest/c_api.html>, and the Python protocol beside them.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use crate::bound::Bound as Here;
use crate::errors::invalid;
use crate::slab::Slab;

/// `kDLCPU`.
const CPU: i32 = 1;
/// `kDLCUDA`.
const CUDA: i32 = 2;
/// `kDLCUDAHost`: memory of the host, pinned.
const PINNED: i32 = 3;
/// `kDLCUDAManaged`: memory that the driver moves between the host and GPUs.
const MANAGED: i32 = 13;
/// `kDLUInt`.
const UNSIGNED: u8 = 1;
/// `DLPACK_FLAG_BITMASK_READ_ONLY`.
const READ_ONLY: u64 = 1;
/// How a library is told in which order its work and the consumer's come: before what comes into the legacy
/// default stream, or in none.
const BEFORE_DEFAULT: i64 = 1;
const NO_ORDER: i64 = -1;
/// What is spoken here.
const VERSION: (u32, u32) = (1, 0);

/// What a capsule is named that nobody has taken over yet: before version 1, and from then on.
const UNVERSIONED: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";

/// `DLTensor`.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: i32,
    device_id: i32,
    dimensions: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In items; null where the items follow each other.
    strides: *const i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: Tensor,
}

/// What a capsule of a kind holds.
trait Manager {
    /// The capsule's name as long as nobody has taken it over.
    const NAME: &CStr;

    /// For a tensor that [`hide`] ends.
    fn of(tensor: Tensor) -> Self;

    fn tensor(&mut self) -> &mut Tensor;
}

impl Manager for Managed {
    const NAME: &CStr = UNVERSIONED;

    fn of(tensor: Tensor) -> Self {
        Self { tensor, context: ptr::null_mut(), deleter: Some(hide::<Self>) }
    }

    fn tensor(&mut self) -> &mut Tensor {
        &mut self.tensor
    }
}

impl Manager for ManagedVersioned {
    const NAME: &CStr = VERSIONED;

    fn of(tensor: Tensor) -> Self {
        let (context, deleter) = (ptr::null_mut(), Some(hide::<Self> as _));
        Self { major: VERSION.0, minor: VERSION.1, context, deleter, flags: 0, tensor }
    }

    fn tensor(&mut self) -> &mut Tensor {
        &mut self.tensor
    }
}

/// A slab that is shown. Begins with what others see of it.
#[repr(C)]
struct Shown<M> {
    managed: M,
    length: i64,
    slab: Here<Arc<Slab>>,
}

/// `__dlpack_device__` of memory of this computer.
pub(crate) const HOST: (i32, i32) = (CPU, 0);

/// A capsule that shows a slab's bytes, and keeps it, to somebody who knows DLPack up to a version.
///
/// # Errors
/// `MemoryError`.
pub(crate) fn show<'py>(
    py: Python<'py>,
    slab: &Arc<Slab>,
    known: Option<(u32, u32)>,
) -> PyResult<Bound<'py, PyAny>> {
    // To NumPy, what has no version is read-only.
    if known.is_some_and(|known| known >= VERSION) {
        show_as::<ManagedVersioned>(py, slab)
    } else {
        show_as::<Managed>(py, slab)
    }
}

#[expect(unsafe_code, reason = "an interface of C structures")]
fn show_as<'py, M: Manager>(py: Python<'py>, slab: &Arc<Slab>) -> PyResult<Bound<'py, PyAny>> {
    let length = i64::try_from(slab.len())?;
    let managed = M::of(Tensor {
        data: slab.base().as_ptr().cast(),
        device: HOST.0,
        device_id: HOST.1,
        dimensions: 1,
        code: UNSIGNED,
        bits: 8,
        lanes: 1,
        shape: ptr::null(),
        strides: ptr::null(),
        byte_offset: 0,
    });
    let shown = Box::new(Shown { managed, length, slab: Here::new(Arc::clone(slab)) });
    let shown = Box::into_raw(shown);
    // SAFETY: the box was made above, and nobody else has it yet.
    let length = unsafe { &raw const (*shown).length };
    // SAFETY: as above.
    let managed = unsafe { &mut (*shown).managed };
    managed.tensor().shape = length;
    let (name, end) = (M::NAME.as_ptr(), Some(unused::<M> as ffi::PyCapsule_Destructor));
    // SAFETY: the interpreter's lock is held; the name is static, and the pointer not null.
    let capsule = unsafe { ffi::PyCapsule_New(shown.cast(), name, end) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, capsule) }.inspect_err(|_| {
        // SAFETY: there is no capsule that could do it.
        unsafe { hide::<M>(shown.cast()) };
    })
}

/// Whoever took a capsule over calls this once, from any thread.
#[expect(unsafe_code, reason = "an interface of C structures")]
unsafe extern "C" fn hide<M>(managed: *mut M) {
    // SAFETY: `show` made the box, whose first field this is; consumers call a deleter once.
    drop(unsafe { Box::from_raw(managed.cast::<Shown<M>>()) });
}

/// The end of a capsule. One that was taken over has another name by now.
#[expect(unsafe_code, reason = "an interface of C structures")]
unsafe extern "C" fn unused<M: Manager>(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls this with the capsule, and its lock held.
    if unsafe { ffi::PyCapsule_IsValid(capsule, M::NAME.as_ptr()) } == 0 {
        return;
    }
    // SAFETY: as above, and the name is right.
    let managed = unsafe { ffi::PyCapsule_GetPointer(capsule, M::NAME.as_ptr()) };
    // SAFETY: nobody took it over, so nobody else calls this.
    unsafe { hide::<M>(managed.cast()) };
}

/// The memory of a tensor of another library. It stays for as long as the capsule does, which is
/// not taken over: its own end deletes it.
pub(crate) struct Seen {
    capsule: Py<PyAny>,
    pub(crate) base: NonNull<u8>,
    pub(crate) length: usize,
    pub(crate) is_read_only: bool,
}

#[expect(unsafe_code, reason = "an address of another library's memory")]
// SAFETY: the address is used as that of any foreign memory is, under the transfer's lock.
unsafe impl Send for Seen {}

/// The kind of device whose memory an object has, and the device's number, if it says so.
///
/// # Errors
/// What the object raises.
pub(crate) fn device(object: &Bound<'_, PyAny>) -> PyResult<Option<(i32, i32)>> {
    let Ok(device) = object.getattr("__dlpack_device__") else { return Ok(None) };
    let (kind, number) = (device.call0()?.get_item(0)?, device.call0()?.get_item(1)?);
    Ok(Some((kind.extract()?, number.extract()?)))
}

/// Whether memory of this kind is the host's.
pub(crate) fn is_host(kind: i32) -> bool {
    kind == CPU || kind == PINNED
}

/// Whether memory of this kind is such that CUDA's driver copies to it.
pub(crate) fn is_gpu(kind: i32) -> bool {
    kind == CUDA || kind == MANAGED
}

/// What an object shows by DLPack; `None` if it does not, or not this time, such as a tensor of a type that
/// DLPack has not. The library puts what it has begun with memory of a GPU before what comes into the default
/// stream, unless the caller has another order.
///
/// # Errors
/// `forebay.Invalid` if the memory is not in one piece, or of a kind that has no bytes.
pub(crate) fn see(object: &Bound<'_, PyAny>, is_ordered: bool) -> PyResult<Option<Seen>> {
    let Ok(method) = object.getattr("__dlpack__") else { return Ok(None) };
    let py = object.py();
    let known = PyDict::new(py);
    if device(object)?.is_some_and(|(kind, _)| is_gpu(kind)) {
        known.set_item("stream", if is_ordered { NO_ORDER } else { BEFORE_DEFAULT })?;
    }
    let versioned = known.copy()?;
    versioned.set_item("max_version", VERSION)?;
    let capsule = match method.call((), Some(&versioned)) {
        // Libraries from before version 1 know no version.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call((), Some(&known)),
        other => other,
    };
    let Ok(capsule) = capsule else { return Ok(None) };
    let Ok(capsule) = capsule.cast_into::<PyCapsule>() else { return Ok(None) };
    let Some((tensor, is_read_only)) = tensor(&capsule) else { return Ok(None) };
    let length = bytes_of(py, tensor)?;
    if tensor.data.is_null() && length != 0 {
        return Err(invalid(py, "the memory is at no address"));
    }
    let offset = usize::try_from(tensor.byte_offset)?;
    let base = NonNull::new(tensor.data.cast::<u8>().wrapping_add(offset));
    let base = base.unwrap_or(NonNull::dangling());
    Ok(Some(Seen { capsule: capsule.into_any().unbind(), base, length, is_read_only }))
}

impl Seen {
    /// Lets the object go.
    pub(crate) fn release(self, py: Python<'_>) {
        drop(self.capsule.into_bound(py));
    }
}

/// What a capsule holds, and whether it must not be changed.
#[expect(unsafe_code, reason = "an interface of C structures")]
fn tensor<'a>(capsule: &'a Bound<'_, PyCapsule>) -> Option<(&'a Tensor, bool)> {
    let pointer = |name: &CStr| {
        // SAFETY: it is a capsule, and the interpreter's lock is held.
        if unsafe { ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) } == 0 {
            return None;
        }
        // SAFETY: as above, and it has that name.
        NonNull::new(unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()) })
    };
    if let Some(managed) = pointer(VERSIONED) {
        // SAFETY: that is what a capsule of this name holds, for as long as it lives.
        let managed = unsafe { managed.cast::<ManagedVersioned>().as_ref() };
        let known = managed.major == VERSION.0;
        return known.then_some((&managed.tensor, managed.flags & READ_ONLY != 0));
    }
    // SAFETY: as above.
    let managed = unsafe { pointer(UNVERSIONED)?.cast::<Managed>().as_ref() };
    Some((&managed.tensor, false))
}

/// How many bytes a tensor has, which follow each other.
fn bytes_of(py: Python<'_>, tensor: &Tensor) -> PyResult<usize> {
    let bits = usize::from(tensor.bits) * usize::from(tensor.lanes);
    if !bits.is_multiple_of(8) {
        return Err(invalid(py, "the memory's items are no whole bytes"));
    }
    let shape = numbers(tensor.shape, tensor.dimensions);
    let strides = numbers(tensor.strides, tensor.dimensions);
    let items = shape.iter().try_fold(1usize, |items, &n| items.checked_mul(n.try_into().ok()?));
    let bytes = items.and_then(|items| items.checked_mul(bits / 8));
    let bytes = bytes.ok_or_else(|| invalid(py, "the memory's shape makes no sense"))?;
    // Where there is no item, products of the others may be of any size.
    let mut expected = 1;
    for (&length, &stride) in shape.iter().zip(strides).rev().filter(|_| bytes != 0) {
        if length != 1 && stride != expected {
            return Err(invalid(py, "the memory is not in one piece: pass a contiguous one"));
        }
        expected *= length;
    }
    Ok(bytes)
}

#[expect(unsafe_code, reason = "an interface of C structures")]
fn numbers<'a>(first: *const i64, count: i32) -> &'a [i64] {
    match usize::try_from(count) {
        // SAFETY: shapes and strides are as long as there are dimensions, and live as long as
        // their tensor, which callers hold.
        Ok(count) if !first.is_null() => unsafe { std::slice::from_raw_parts(first, count) },
        _ => &[],
    }
}
