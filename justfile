# The index of commands: `just` lists them. Each is one line that can be typed without just, too.

_list:
    @just --list --unsorted

# Build the node, optimised
build:
    cargo build --release --locked -p forebay

# Everything that must hold before a change goes in; `just check --quick` leaves out the slow parts
check *ARGS:
    ci/test {{ARGS}}

# All tests; PATTERN picks some
test PATTERN="":
    cargo test --workspace --locked -- {{PATTERN}}

# The Python package's tests, against a node of its own
python *ARGS:
    ci/python {{ARGS}}

# What needs a GPU: bytes compared, figures as ratios
gpu *ARGS:
    ci/gpu {{ARGS}}

# NVIDIA's own libcufile, named by its path, over a driver without a GPU
cufile LIBRARY:
    ci/cufile {{LIBRARY}}

# A command in a guest with NVMe, VFIO and soft-RoCE: see ci/lab/README.md
lab *ARGS:
    ci/lab/run {{ARGS}}

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

# Forebay beside its rivals on this machine; CASES picks some (`just bench --list`)
bench *CASES="all":
    cargo build --release --locked -p forebay -p forebay-benches
    target/release/compare {{CASES}}

# Micro-benchmarks; PATTERN picks some
micro PATTERN="":
    cargo bench --locked -p forebay-benches -- {{PATTERN}}

# Random crashes of a tier, then the whole node in the simulator, for these SEEDS: a number, or two with .. between them
sim SEEDS="0..100":
    FOREBAY_SIM_SEEDS={{SEEDS}} cargo test --release --locked -p forebay-nvme-tier --test crash
    FOREBAY_SIM_SEEDS={{SEEDS}} cargo test --release --locked -p forebay-dataplane --test simulation

# Every short workload cut everywhere: millions of crash images; STEP=10 takes every tenth workload
crash STEP="1":
    FOREBAY_CRASH_STEP={{STEP}} cargo test --release --locked -p forebay-nvme-tier --test crash every_short -- --nocapture

# A container image
image TAG="forebay":
    podman build -f deploy/Containerfile -t {{TAG}} .
