//! What a buffer costs, next to one from the allocator.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use dma::{HugePages, Pool, SizeClass};

fn pool(criterion: &mut Criterion) {
    let sizes = [
        SizeClass { bytes: 4096, count: 256 },
        SizeClass { bytes: 64 << 10, count: 64 },
        SizeClass { bytes: 1 << 20, count: 16 },
    ];
    let pool = Pool::new(&sizes, HugePages::Try).expect("memory");
    let mut group = criterion.benchmark_group("pool");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    group.bench_function("take and give back 4 KiB", |b| {
        b.iter(|| black_box(pool.take(4096).expect("one is free")));
    });
    group.bench_function("take and give back 16 of 64 KiB", |b| {
        b.iter(|| {
            let taken: [_; 16] = std::array::from_fn(|_| pool.take(64 << 10).expect("free"));
            black_box(taken)
        });
    });
    group.bench_function("allocate and free 64 KiB", |b| {
        b.iter(|| black_box(Vec::<u8>::with_capacity(64 << 10)));
    });
    group.finish();
}

criterion_group!(benches, pool);
criterion_main!(benches);
