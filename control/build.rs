//! Compiles the protocol definitions: in Rust, so that no `protoc` is needed.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const FILES: [&str; 6] = [
    "forebay/v1/common.proto",
    "forebay/v1/files.proto",
    "forebay/v1/jobs.proto",
    "forebay/v1/silos.proto",
    "forebay/v1/node.proto",
    "forebay/v1/sessions.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    fs::write(out.join("forebay_v1.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure()
        // Ordered maps, so that equal messages have equal bytes.
        .btree_map(".")
        // It holds a secret, so what is shown of it is written by hand.
        .skip_debug(["forebay.v1.SessionGrant"])
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
