//! What a capsule costs on either side.
#![allow(missing_docs, reason = "criterion's macros make the functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use extent::ByteRange;
use extent::wire::{
    Command, Downstream, LONG_REQUEST_BYTES, MAX_BODY_BYTES, REPLY_BYTES, Reply, Request, Segment,
    Segments,
};

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    group.measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    let request = Request {
        tag: 7,
        payload_crc: None,
        command: Command::Read {
            handle: 3,
            range: ByteRange::new(1 << 30, 4096).expect("in bounds"),
            into: Segments::one(Segment { address: 8192, length: 4096, key: 1 }),
        },
    };
    let mut capsule = [0; LONG_REQUEST_BYTES];
    group.bench_function("encode a READ", |b| {
        b.iter(|| black_box(&request).encode(black_box(&mut capsule)));
    });
    let length = request.encode(&mut capsule);
    group.bench_function("parse a READ", |b| {
        b.iter(|| Request::parse(black_box(&capsule[..length])).expect("own capsule"));
    });
    let reply = Reply { value: 4096, credits: 64, ..Reply::success(7) };
    let mut out = [0; REPLY_BYTES + MAX_BODY_BYTES];
    group.bench_function("encode a reply", |b| {
        b.iter(|| black_box(&reply).encode(black_box(&mut out)));
    });
    reply.encode(&mut out);
    let header = *out.first_chunk::<REPLY_BYTES>().expect("long enough");
    group.bench_function("parse a reply", |b| {
        b.iter(|| Downstream::parse(black_box(&header)).expect("own reply"));
    });
    group.finish();
}

criterion_group!(benches, wire);
criterion_main!(benches);
