//! What address sets cost: reading a list, compiling it, and asking for an address.
//!
//! `cargo run --release -p sluice-filters --example set_speed` prints times in milliseconds and nanoseconds, the best of
//! a few rounds. The prefixes are a seeded mix of the lengths that public lists have; `random` spreads them over the whole
//! space, `clustered` over a few hundred networks.

use std::hint::black_box;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sluice_config::Shortest;
use sluice_filters::AddressSet;
use sluice_filters::addr::Addr;
use sluice_filters::sets::{Reading, SetMap, read_list};

const PREFIXES: usize = 1_000_000;
/// Addresses asked in a round. Warm, they are the same few again and again; cold, none comes twice in a round, so lookups
/// miss as a flood's do.
const ASKED: usize = 1 << 20;
const WARM: usize = 1000;
const COLD: usize = 1 << 14;
const ROUNDS: usize = 3;
/// A burst: touched first, then asked.
const BURST: usize = 32;

/// An address of the whole space of a family.
type Space = fn(&mut Rng) -> Addr;

/// A prefix of a list.
type Prefixes = fn(&mut Rng) -> IpNet;

/// SplitMix64: enough for spreading prefixes, and the same on every run.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[(self.next() % among.len() as u64) as usize]
    }

    fn six(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

fn random_v4(rng: &mut Rng) -> IpNet {
    let len = rng.pick(&[32, 32, 32, 32, 32, 32, 24, 24, 24, 29, 28, 22, 20]);
    Ipv4Net::new(Ipv4Addr::from(rng.next() as u32), len).expect("a prefix").trunc().into()
}

fn clustered_v4(rng: &mut Rng) -> IpNet {
    let net = (rng.next() % 200).wrapping_mul(0x9e37_79b9) as u32 & 0xffff_0000;
    Ipv4Net::new(Ipv4Addr::from(net | rng.next() as u32 & 0xffff), rng.pick(&[32, 32, 32, 32, 31, 30]))
        .expect("a prefix")
        .trunc()
        .into()
}

/// Registries' space: some 20,000 networks of /32, in each some /48, in each some /64 and single addresses.
fn random_v6(rng: &mut Rng) -> IpNet {
    let top =
        u128::from(rng.pick(&[0x2001u32, 0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2a01, 0x2a02, 0x2a10, 0x2c0f]));
    let net = u128::from((rng.next() % 2000) as u32 * 8);
    let site = rng.six() >> 32;
    let bits = top << 112 | net << 96 | site >> rng.pick(&[0, 0, 3, 8]);
    let len = rng.pick(&[32, 40, 44, 48, 48, 48, 48, 56, 64, 64, 64, 64, 128, 128, 128, 128]);
    // Few whole /32, or they would hold all the rest.
    let len = if len < 48 && !rng.next().is_multiple_of(64) { 48 } else { len };
    Ipv6Net::new(Ipv6Addr::from(bits), len).expect("a prefix").trunc().into()
}

/// All of it in one /32: the least even a list can be.
fn clustered_v6(rng: &mut Rng) -> IpNet {
    let bits = 0x2a01_04f8u128 << 96 | rng.six() >> 40 << 8 & ((1u128 << 96) - 1) | u128::from(rng.next() as u8);
    Ipv6Net::new(Ipv6Addr::from(bits), rng.pick(&[56, 64, 64, 64, 128])).expect("a prefix").trunc().into()
}

fn inside(rng: &mut Rng, net: &IpNet) -> Addr {
    match net {
        IpNet::V4(net) => Addr::v4(net.network().to_bits() | rng.next() as u32 & net.hostmask().to_bits()),
        IpNet::V6(net) => Addr::v6((net.network().to_bits() | rng.six() & net.hostmask().to_bits()).to_be_bytes()),
    }
}

/// Best nanoseconds per lookup among blocks, which are short enough to go undisturbed.
fn lookup(map: &SetMap, asked: &[Addr], block: usize, touched: bool) -> f64 {
    let one = |block: &[Addr]| {
        let start = Instant::now();
        for burst in block.chunks(BURST) {
            if touched {
                burst.iter().for_each(|&addr| map.touch(addr));
            }
            for &addr in burst {
                black_box(map.class(addr));
            }
        }
        start.elapsed().as_nanos() as f64 / block.len() as f64
    };
    (0..ROUNDS).flat_map(|_| asked.chunks_exact(block)).map(one).fold(f64::INFINITY, f64::min)
}

fn row(name: &str, sets: &[AddressSet], nets: &[IpNet], space: Space) {
    let start = Instant::now();
    let map = match SetMap::build(sets) {
        Ok(map) => map,
        Err(e) => return println!("{name:<26} {e} ({} ranges)", sets.iter().map(AddressSet::ranges).sum::<usize>()),
    };
    let build = start.elapsed().as_millis();
    let mut rng = Rng(7);
    let random: Vec<Addr> = (0..ASKED).map(|_| space(&mut rng)).collect();
    let held: Vec<Addr> = (0..ASKED)
        .map(|_| {
            let at = rng.next() as usize % nets.len();
            inside(&mut rng, &nets[at])
        })
        .collect();
    let few = |all: &[Addr]| all.iter().copied().take(WARM).cycle().take(ASKED).collect::<Vec<_>>();
    let costs = [
        lookup(&map, &few(&random), WARM, false),
        lookup(&map, &few(&held), WARM, false),
        lookup(&map, &random, COLD, false),
        lookup(&map, &held, COLD, false),
        lookup(&map, &random, COLD, true),
        lookup(&map, &held, COLD, true),
    ];
    print!("{name:<26} {:>8} {build:>6} {:>6.1}", map.classes(), map.memory() as f64 / f64::from(1 << 20));
    costs.iter().for_each(|cost| print!(" {cost:>8.1}"));
    println!();
}

fn main() {
    println!(
        "{:<26} {:>8} {:>6} {:>6} {:^17} {:^17} {:^17}",
        "", "", "build", "memory", "warm", "cold", "cold, touched"
    );
    print!("{:<26} {:>8} {:>6} {:>6}", "a million prefixes", "classes", "ms", "MiB");
    (0..3).for_each(|_| print!(" {:>8} {:>8}", "space", "inside"));
    println!();
    let v4: Space = |rng| Addr::v4(rng.next() as u32);
    let v6: Space = |rng| Addr::v6((rng.six() >> 3 | 1 << 125).to_be_bytes());
    let kinds: [(&str, Prefixes, Space); 4] = [
        ("IPv4, random", random_v4, v4),
        ("IPv4, clustered", clustered_v4, v4),
        ("IPv6, random", random_v6, v6),
        ("IPv6, clustered", clustered_v6, v6),
    ];
    let mut lists = Vec::new();
    for (name, net, space) in kinds {
        let mut rng = Rng(42);
        let nets: Vec<IpNet> = (0..PREFIXES).map(|_| net(&mut rng)).collect();
        row(name, &[AddressSet::new(&nets)], &nets, space);
        let sets: Vec<_> = nets.chunks(PREFIXES.div_ceil(64)).map(AddressSet::new).collect();
        row(&format!("{name}, 64 sets"), &sets, &nets, space);
        lists.push((name, nets));
    }

    let folder = tempfile::tempdir().expect("a folder");
    let reading = Reading { shortest: Shortest::NONE, skip_broken: false };
    println!("\n{:<26} {:>8} {:>8} {:>8} {:>8}", "from a file", "read ms", "set ms", "map ms", "ranges");
    for (name, nets) in lists {
        let path = folder.path().join("list");
        let mut text = Vec::new();
        nets.iter().for_each(|net| writeln!(text, "{net}").expect("room"));
        std::fs::write(&path, text).expect("a file");
        let start = Instant::now();
        let read = read_list(&path, reading).expect("a list").nets;
        let took = start.elapsed().as_millis();
        let start = Instant::now();
        let set = AddressSet::new(&read);
        let sorting = start.elapsed().as_millis();
        let start = Instant::now();
        black_box(SetMap::build(std::slice::from_ref(&set)).expect("a map"));
        println!("{name:<26} {took:>8} {sorting:>8} {:>8} {:>8}", start.elapsed().as_millis(), set.ranges());
    }
}
