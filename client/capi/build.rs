//! How the shared library is linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A thread that connects may still run when a program unloads what it had loaded.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
