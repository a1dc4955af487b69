# The index of commands: `just` lists them. Each is one line that can be typed without just, too.

_list:
    @just --list --unsorted

# Build the node, optimised
build:
    cargo build --release --locked -p forebay

# Everything that must hold before a change goes in
check: lint test

# All tests; PATTERN picks some
test PATTERN="":
    cargo test --workspace --locked -- {{PATTERN}}

# Formatting, lints, documentation
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Licences, advisories, duplicate and banned crates (needs cargo-deny)
deny:
    cargo deny --all-features check

# The whole life of files on this machine, from promote to restart; DIR is only read
demo DIR="":
    cargo run --release --locked -p forebay -- demo {{DIR}}

# What this machine offers
doctor:
    cargo run --release --locked -p forebay -- doctor

# A node on loopback with a file-backed tier
serve *ARGS:
    cargo run --release --locked -p forebay -- serve {{ARGS}}

# Benchmarks, each beside its limit; CASES picks some
bench *CASES:
    cargo run --release --locked -p forebay-benches -- {{CASES}}

# The whole node in the simulator, from SEED on
sim SEED="1" RUNS="100":
    FOREBAY_SIM_SEED={{SEED}} FOREBAY_SIM_RUNS={{RUNS}} cargo test --release --locked -p forebay-dataplane sim -- --nocapture

# A container image
image TAG="forebay":
    podman build -f deploy/Containerfile -t {{TAG}} .
