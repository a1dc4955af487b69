//! What a checksum costs, next to the least that reading the bytes can cost: summing them.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use extent::checksum::{crc32c, crc32c_blocks, first_mismatch};

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks_exact(8);
    words.fold(0u64, |sum, word| {
        sum.wrapping_add(u64::from_le_bytes(word.try_into().expect("eight bytes")))
    })
}

fn checksums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("checksum");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    for bytes in [4096usize, 1 << 20] {
        let data: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).expect("small")).collect();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::new("crc32c", bytes), &data, |b, data| {
            b.iter(|| crc32c(black_box(data)));
        });
        let expected: Vec<u32> = crc32c_blocks(&data, 4096).collect();
        group.bench_with_input(BenchmarkId::new("verify 4 KiB blocks", bytes), &data, |b, data| {
            b.iter(|| first_mismatch(black_box(data), 4096, expected.iter().copied()));
        });
        group.bench_with_input(BenchmarkId::new("plain sum", bytes), &data, |b, data| {
            b.iter(|| sum(black_box(data)));
        });
    }
    group.finish();
}

criterion_group!(benches, checksums);
criterion_main!(benches);
