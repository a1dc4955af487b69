//! One small read at a time through the client, over shared memory and TCP, from a node that has
//! the bytes at hand: what the fabrics and the client cost.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

#[path = "../../client/tests/mini/mod.rs"]
mod mini;

use std::time::Duration;

use client::{Client, Endpoint, Options};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mini::Mini;

const BLOCK_BYTES: usize = 4096;
const BATCH: u64 = 16;

fn round_trips(criterion: &mut Criterion) {
    let mini = Mini::start(vec![7; 1 << 20]);
    let endpoints = [
        ("shared memory", Endpoint::Unix(mini.socket.clone())),
        ("TCP", Endpoint::Tcp(mini.address.to_string())),
    ];
    let mut group = criterion.benchmark_group("4 KiB");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_millis(500));
    for (name, endpoint) in endpoints {
        let options = Options { spin: Duration::from_millis(1), ..Options::default() };
        let client = Client::connect(&endpoint, &options).expect("it listens");
        let file = client.open(&"data/a".parse().expect("a name")).expect("there");
        let mut memory = client.alloc(BLOCK_BYTES).expect("memory");
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("read over {name}"), |b| {
            b.iter(|| file.read_at(0, &mut memory, ..).expect("read"));
        });
        let mut idle: Vec<_> =
            (0..BATCH).map(|_| client.alloc(BLOCK_BYTES).expect("memory")).collect();
        group.throughput(Throughput::Elements(BATCH));
        group.bench_function(format!("batch of {BATCH} over {name}"), |b| {
            b.iter(|| {
                let fetches: Vec<_> = idle.drain(..).map(|memory| file.fetch(0, memory)).collect();
                idle.extend(client.read_batch(fetches).wait().into_iter().map(|one| one.memory));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, round_trips);
criterion_main!(benches);
