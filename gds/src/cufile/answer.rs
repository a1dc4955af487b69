//! What cuFile answers, made an error.

use std::ffi::{c_int, c_uint};
use std::io;

use extent::{Error, Kind, Result};

use super::ffi::CUfileError;

pub(super) const CU_FILE_SUCCESS: c_int = 0;
pub(super) const CU_FILE_CUDA_DRIVER_ERROR: c_int = 5011;
pub(super) const CU_FILE_DRIVER_ALREADY_OPEN: c_int = 5026;
/// No answer of a read below this is an `errno`: those are told by -1.
const CUFILEOP_BASE_ERR: isize = 5000;

/// The answers that a caller can act upon: number and name in `cufile.h` (`CUfileOpError`), what it is
/// here, and what to do.
#[rustfmt::skip]
pub(super) const CODES: &[(c_int, &str, Kind, &str)] = &[
    (5001, "CU_FILE_DRIVER_NOT_INITIALIZED", Kind::Unsupported, "load nvidia-fs, or set allow_compat_mode in cufile.json"),
    (5002, "CU_FILE_DRIVER_INVALID_PROPS", Kind::Unsupported, "look at cufile.json"),
    (5003, "CU_FILE_DRIVER_UNSUPPORTED_LIMIT", Kind::Unsupported, "look at cufile.json"),
    (5004, "CU_FILE_DRIVER_VERSION_MISMATCH", Kind::Unsupported, "nvidia-fs and libcufile are of different releases"),
    (5005, "CU_FILE_DRIVER_VERSION_READ_ERROR", Kind::Unsupported, "look at dmesg for nvidia-fs"),
    (5006, "CU_FILE_DRIVER_CLOSING", Kind::Unsupported, "something in this process closes cuFile's driver"),
    (5007, "CU_FILE_PLATFORM_NOT_SUPPORTED", Kind::Unsupported, "this machine has no GPUDirect Storage: look at gdscheck -p"),
    (5008, "CU_FILE_IO_NOT_SUPPORTED", Kind::Unsupported, "not on this file system: look at gdscheck -p"),
    (5009, "CU_FILE_DEVICE_NOT_SUPPORTED", Kind::Unsupported, "not with this GPU"),
    (5010, "CU_FILE_NVFS_DRIVER_ERROR", Kind::Io, "look at dmesg for nvidia-fs"),
    (5011, "CU_FILE_CUDA_DRIVER_ERROR", Kind::Disconnected, "the device is lost to this process: start it anew"),
    (5012, "CU_FILE_CUDA_POINTER_INVALID", Kind::Invalid, "this is no device memory"),
    (5013, "CU_FILE_CUDA_MEMORY_TYPE_INVALID", Kind::Invalid, "this kind of memory cannot be read into"),
    (5014, "CU_FILE_CUDA_POINTER_RANGE_ERROR", Kind::Invalid, "the memory ends before that"),
    (5015, "CU_FILE_CUDA_CONTEXT_MISMATCH", Kind::Invalid, "the memory is another context's"),
    (5016, "CU_FILE_INVALID_MAPPING_SIZE", Kind::Invalid, "register less memory"),
    (5017, "CU_FILE_INVALID_MAPPING_RANGE", Kind::Invalid, "the registered memory ends before that"),
    (5018, "CU_FILE_INVALID_FILE_TYPE", Kind::Unsupported, "cuFile does not read such files"),
    (5019, "CU_FILE_INVALID_FILE_OPEN_FLAG", Kind::Unsupported, "cuFile does not read files that are opened so"),
    (5020, "CU_FILE_DIO_NOT_SET", Kind::Unsupported, "cuFile needs O_DIRECT here"),
    (5022, "CU_FILE_INVALID_VALUE", Kind::Invalid, "cuFile takes no such argument"),
    (5023, "CU_FILE_MEMORY_ALREADY_REGISTERED", Kind::Invalid, "register memory once"),
    (5024, "CU_FILE_MEMORY_NOT_REGISTERED", Kind::Invalid, "the memory is not registered"),
    (5025, "CU_FILE_PERMISSION_DENIED", Kind::Denied, "look at who may open /dev/nvidia-fs* and the file"),
    (5026, "CU_FILE_DRIVER_ALREADY_OPEN", Kind::Invalid, "the driver is open already"),
    (5027, "CU_FILE_HANDLE_NOT_REGISTERED", Kind::Invalid, "the file is not registered"),
    (5028, "CU_FILE_HANDLE_ALREADY_REGISTERED", Kind::Invalid, "the file is registered already"),
    (5029, "CU_FILE_DEVICE_NOT_FOUND", Kind::Unsupported, "cuFile does not know this GPU"),
    (5030, "CU_FILE_INTERNAL_ERROR", Kind::Io, "look at cufile.log; in a container, is /run/udev there?"),
    (5031, "CU_FILE_GETNEWFD_FAILED", Kind::Io, "look at ulimit -n"),
    (5033, "CU_FILE_NVFS_SETUP_ERROR", Kind::Unsupported, "look at cufile.log and dmesg: does libcuda.so.1 load, and nvidia-fs?"),
    (5034, "CU_FILE_IO_DISABLED", Kind::Unsupported, "cufile.json turns it off for this file"),
    (5036, "CU_FILE_GPU_MEMORY_PINNING_FAILED", Kind::NoSpace, "register less memory"),
];

/// Makes an error of what a function answered.
pub(super) fn check(function: &str, answer: CUfileError) -> Result<()> {
    match answer.err {
        CU_FILE_SUCCESS => Ok(()),
        code => Err(error(function, code, answer.cu_err)),
    }
}

/// Makes an error of a number of `CUfileOpError`, and of CUDA's under it.
fn error(function: &str, code: c_int, cuda: c_uint) -> Error {
    let beneath = match code {
        CU_FILE_CUDA_DRIVER_ERROR if cuda != 0 => format!(" (CUDA: {cuda})"),
        _ => String::new(),
    };
    match CODES.iter().find(|(known, ..)| *known == code) {
        Some((_, name, kind, advice)) => {
            kind.error(format!("{function}: {code} {name}{beneath}: {advice}"))
        }
        None => Kind::Io.error(format!("{function}: {code}, unknown: look at cufile.log")),
    }
}

/// What became of a `cuFileRead`: bytes, or an error. `errno` is the thread's right after it.
pub(super) fn of_read(answer: isize, errno: io::Error, asked: usize) -> Result<usize> {
    const FUNCTION: &str = "cuFileRead";
    match usize::try_from(answer) {
        Ok(bytes) if bytes <= asked => Ok(bytes),
        Ok(bytes) => Err(Kind::Corrupt
            .error(format!("{FUNCTION}: {bytes} bytes of {asked}: do not use this library"))),
        Err(_) if answer < -CUFILEOP_BASE_ERR => {
            let code = answer.checked_neg().and_then(|code| c_int::try_from(code).ok());
            Err(error(FUNCTION, code.unwrap_or(c_int::MAX), 0))
        }
        Err(_) => Err(of_errno(FUNCTION, errno)),
    }
}

/// A file system's error.
pub(super) fn of_errno(what: impl Into<String>, errno: io::Error) -> Error {
    let kind = match errno.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::PermissionDenied => Kind::Denied,
        io::ErrorKind::OutOfMemory => Kind::NoSpace,
        io::ErrorKind::StaleNetworkFileHandle => Kind::Stale,
        _ => Kind::Io,
    };
    kind.error(what).caused_by(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn answers_of_a_read_are_told_apart() {
        let read = |answer, number| of_read(answer, errno(number), 100);
        assert_eq!(read(100, 0).expect("all"), 100);
        assert_eq!(read(0, 0).expect("none"), 0);
        for (answer, number, kind, words) in [
            (-1, 5, Kind::Io, "os error 5"),
            (-1, 13, Kind::Denied, "os error 13"),
            (-1, 116, Kind::Stale, "os error 116"),
            (-1, 12, Kind::NoSpace, "os error 12"),
            (-2, 5, Kind::Io, "os error 5"),
            (-5008, 0, Kind::Unsupported, "5008 CU_FILE_IO_NOT_SUPPORTED"),
            (-5011, 0, Kind::Disconnected, "5011 CU_FILE_CUDA_DRIVER_ERROR"),
            (-5777, 0, Kind::Io, "5777, unknown"),
            (isize::MIN, 0, Kind::Io, "unknown"),
            (101, 0, Kind::Corrupt, "101 bytes of 100"),
        ] {
            let error = read(answer, number).expect_err("no bytes");
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn cudas_answer_is_told_with_cufiles() {
        let error = check("cuFileDriverOpen", CUfileError { err: 5011, cu_err: 100 });
        let said = error.expect_err("refused").to_string();
        assert!(
            said.contains("cuFileDriverOpen: 5011 CU_FILE_CUDA_DRIVER_ERROR (CUDA: 100)"),
            "{said}"
        );
    }
}
