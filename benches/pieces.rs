//! What single steps of the hot path cost, without a socket. The whole against a bare Redis is `whole.py` beside this file.
//!
//! Each bench says what one element is: a request, a reply, a look-up, a write. Inputs and results go through `black_box`,
//! so that nothing is worked out at compile time or left out; what has to be looked up is different from one element to
//! the next.

use std::hint::black_box;
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

use cutover::command;
use cutover::dual::lane::{Lane, Mode, Order, Outcome, Work};
use cutover::resp::limits::Limits;
use cutover::resp::request::Request;
use cutover::resp::scan::{ReplyScanner, RequestScanner};
use cutover::resp::write;
use cutover::routing::{Ack, ClusterKeys, Databases, Key, Pattern, Patterns, Phase, RoutingSpec, Table};
use cutover::slot;

/// What a session reads at once.
const READ_BYTES: usize = 16 << 10;
/// Keys that a look-up bench goes through: more than the nearest cache holds, few enough to be made quickly.
const KEYS: usize = 4096;

/// A key as the applications have them, of provider `id`.
fn key(id: usize) -> Vec<u8> {
    format!("provider:{id}:session:9f86d081").into_bytes()
}

/// `count` SET commands behind each other.
fn sets(count: usize, value_bytes: usize) -> Vec<u8> {
    let value = vec![b'x'; value_bytes];
    let mut out = BytesMut::new();
    for id in 0..count {
        write::command(&mut out, &[b"SET", &key(id), &value]);
    }
    out.to_vec()
}

/// Scans all requests in `stream`, of which `read_bytes` more arrive each time. Gives the arguments found.
fn scan_requests(scanner: &mut RequestScanner, limits: &Limits, stream: &[u8], read_bytes: usize) -> usize {
    let (mut from, mut there, mut found) = (0, 0, 0);
    while from < stream.len() {
        there = (there + read_bytes).min(stream.len());
        while let Some(length) = scanner.scan(&stream[from..there], limits).expect("the stream is well-formed") {
            found += scanner.args().len();
            from += length;
            if from == there {
                break;
            }
        }
    }
    found
}

/// One element is one request.
fn request_scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_scan");
    let limits = Limits::default();
    for (name, count, value_bytes, read_bytes) in [
        ("set_64", 1, 64, usize::MAX),
        ("set_1k", 1, 1 << 10, usize::MAX),
        ("set_64_x16", 16, 64, usize::MAX),
        ("set_1k_x16", 16, 1 << 10, usize::MAX),
        ("set_1k_x16_in_16k_reads", 16, 1 << 10, READ_BYTES),
        ("set_64_x1000_in_16k_reads", 1000, 64, READ_BYTES),
        ("set_64k", 1, 64 << 10, usize::MAX),
        ("set_64k_in_16k_reads", 1, 64 << 10, READ_BYTES),
    ] {
        let stream = sets(count, value_bytes);
        let read_bytes = read_bytes.min(stream.len());
        let mut scanner = RequestScanner::default();
        assert_eq!(scan_requests(&mut scanner, &limits, &stream, read_bytes), 3 * count);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| scan_requests(&mut scanner, black_box(&limits), black_box(&stream), black_box(read_bytes)));
        });
    }
    group.finish();
}

/// One element is one reply, the array of 1,000 too.
fn reply_scan(criterion: &mut Criterion) {
    let mut bulk = BytesMut::new();
    write::bulk(&mut bulk, &[b'x'; 64]);
    let mut array = BytesMut::new();
    write::array(&mut array, 1000);
    for _ in 0..1000 {
        array.extend_from_slice(&bulk);
    }
    let mut group = criterion.benchmark_group("reply_scan");
    group.throughput(Throughput::Elements(1));
    for (name, frame) in [("ok", &b"+OK\r\n"[..]), ("bulk_64", &bulk), ("array_1000_of_bulk_64", &array)] {
        let mut scanner = ReplyScanner::default();
        assert_eq!(scanner.scan(frame), Ok(Some(frame.len())));
        group.bench_function(name, |bencher| bencher.iter(|| scanner.scan(black_box(frame))));
    }
    group.finish();
}

/// One element is one request whose command and keys are found.
fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("command");
    let names: [&[u8]; 8] = [b"GET", b"set", b"HGETALL", b"ZADD", b"incr", b"EXPIRE", b"XREADGROUP", b"lpush"];
    assert!(names.iter().all(|name| command::lookup(name).is_some()));
    group.throughput(Throughput::Elements(names.len() as u64));
    group.bench_function("lookup", |bencher| {
        bencher.iter(|| {
            for name in &names {
                black_box(command::lookup(black_box(name)));
            }
        });
    });
    let mset: Vec<String> = (0..10).flat_map(|n| [format!("provider:{n}:a"), n.to_string()]).collect();
    let mset = std::iter::once("MSET").chain(mset.iter().map(String::as_str)).collect::<Vec<_>>();
    let requests = [
        ("keys_of_set", Request::from_args(&["SET", "provider:42:a", "1"]), 1),
        ("keys_of_mset_10", Request::from_args(&mset), 10),
        ("keys_of_eval_2", Request::from_args(&["EVAL", "return 1", "2", "provider:42:a", "provider:42:b", "x"]), 2),
    ];
    group.throughput(Throughput::Elements(1));
    for (name, request, keys) in &requests {
        let spec = command::lookup(request.arg(0)).expect("the command is known");
        assert_eq!(command::keys_of(spec, request).map(|found| found.len()), Some(*keys));
        group.bench_function(*name, |bencher| bencher.iter(|| command::keys_of(black_box(spec), black_box(request))));
    }
    group.finish();
}

/// One element is one key.
fn slots(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("slot");
    let whole: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
    let tagged: Vec<Vec<u8>> = (0..KEYS).map(|id| format!("{{provider:{id}}}:session:9f86d081").into_bytes()).collect();
    group.throughput(Throughput::Elements(KEYS as u64));
    for (name, keys) in [("whole_key", &whole), ("hash_tag", &tagged)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| keys.iter().map(|key| u64::from(slot::of(black_box(key)))).sum::<u64>());
        });
    }
    group.finish();
}

/// Every tenth provider is dual, as in the middle of a migration.
fn spec(providers: usize) -> RoutingSpec {
    let patterns = ["provider:{provider}:*", "*:provider:{provider}:*"];
    let phase = |id: usize| if id.is_multiple_of(10) { Phase::DualStandalone } else { Phase::Cluster };
    RoutingSpec {
        keys: Patterns(patterns.iter().map(|text| Pattern::parse(text).expect("the pattern is right")).collect()),
        new_providers: Phase::Standalone,
        other_keys: Phase::Standalone,
        pubsub: Phase::Standalone,
        ack: Ack::Leader,
        cluster_keys: ClusterKeys::Same,
        databases: Databases::default(),
        prefixes: vec![("asgi:".into(), Phase::Standalone)],
        providers: (0..providers).map(|id| (id.to_string(), phase(id))).collect(),
        ranges: vec![(2_000_000, 2_999_999, Phase::DualStandalone)],
        share: Vec::new(),
        force: Vec::new(),
    }
}

/// One element is one key whose provider, or route, is found.
///
/// `busy`: the keys of ten providers, whatever the size of the table: that the time stays the same is the promise.
/// `spread`: keys of 4,096 providers strewn over the table; what it costs more is the memory that the processor waits for.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("routing");
    group.throughput(Throughput::Elements(KEYS as u64));
    let patterns = spec(0).keys;
    for (name, prefix) in [("provider_of/first_pattern", ""), ("provider_of/second_pattern", ":1:")] {
        let keys: Vec<Vec<u8>> = (0..KEYS).map(|id| [prefix.as_bytes(), &key(id)].concat()).collect();
        assert!(keys.iter().all(|key| patterns.provider_of(key).is_some()));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for key in &keys {
                    black_box(patterns.provider_of(black_box(key)));
                }
            });
        });
    }
    let table = Table::build(&RoutingSpec { ranges: Vec::new(), ..spec(10) }, 1, None);
    let unnamed: Vec<Vec<u8>> = (0..KEYS).map(|id| key(5_000_000 + id)).collect();
    group.bench_function("route_of_unnamed_provider", |bencher| {
        bencher.iter(|| {
            for key in &unnamed {
                black_box(table.route_of(black_box(key)));
            }
        });
    });
    for providers in [10, 1_000, 1_000_000] {
        let table = Table::build(&spec(providers), 1, None);
        // A prime step goes through the table without a pattern that a prefetcher could learn.
        let strewn = |asked: usize| move |n: usize| key((n % asked) * 7_919 % providers);
        for (name, asked) in [("route_of_busy", 10), ("route_of_spread", KEYS)] {
            let keys: Vec<Vec<u8>> = (0..KEYS).map(strewn(asked)).collect();
            assert!(keys.iter().all(|key| table.route_of(key).0.phase != Phase::Standalone));
            group.bench_function(BenchmarkId::new(name, providers), |bencher| {
                bencher.iter(|| {
                    for key in &keys {
                        black_box(table.route_of(black_box(key)));
                    }
                });
            });
        }
    }
    group.finish();
}

/// One element is one provider that gets its route.
fn build(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("table_build");
    let spec = spec(1_000_000);
    group.throughput(Throughput::Elements(spec.providers.len() as u64));
    group.sample_size(10).measurement_time(Duration::from_secs(8)).sampling_mode(SamplingMode::Flat);
    group.bench_function("1000000", |bencher| bencher.iter_with_large_drop(|| Table::build(black_box(&spec), 1, None)));
    let before = Table::build(&spec, 1, None);
    group.bench_function("1000000_from_previous", |bencher| {
        bencher.iter_with_large_drop(|| Table::build(black_box(&spec), 2, Some(&before)));
    });
    group.finish();
}

/// One write from its arrival to the follower's answer, which is what the lane does for it.
fn write_once(lane: &mut Lane<usize>, key: &Key, op: usize, work: Work, orders: &mut Vec<Order<usize>>) {
    let mode = Mode::Mirror { synced: false };
    orders.clear();
    lane.arrive(key, op, work, mode, 0, orders);
    lane.led(key, op, true, Outcome::Done, 0, orders);
    lane.followed(key, op, Outcome::Done, work == Work::Overwrite, 0, orders);
}

/// One element is one write, on a route that is not synced yet.
fn lane(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lane");
    let keys: Vec<Key> = (0..KEYS).map(|id| Key::copied(0, &key(id))).collect();
    group.throughput(Throughput::Elements(KEYS as u64));
    for (name, work) in [("overwrite", Work::Overwrite), ("update_of_a_present_key", Work::Update)] {
        let (mut lane, mut orders) = (Lane::new(1 << 20), Vec::new());
        for key in &keys {
            write_once(&mut lane, key, 0, Work::Overwrite, &mut orders);
        }
        write_once(&mut lane, &keys[0], 1, work, &mut orders);
        assert_eq!(orders, [Order::Lead { op: 1, follow: true }, Order::Follow { op: 1 }]);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (op, key) in keys.iter().enumerate() {
                    write_once(&mut lane, black_box(key), op, work, &mut orders);
                    black_box(&orders);
                }
            });
        });
    }
    group.finish();
}

/// Steps of tens of nanoseconds are known well after a second; the whole file takes about one minute.
fn short() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(50)
}

criterion_group! {
    name = pieces;
    config = short();
    targets = request_scan, reply_scan, commands, slots, routes, build, lane
}
criterion_main!(pieces);
