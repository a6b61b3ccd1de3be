//! Sets, bans and samples: files that somebody changes or reads while the appliance runs, and what is refused of them at start-up.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use sluice_filters::DropReason;
use sluice_tests::appliance::{Mode, Service, Setup, Sluice, check};
use sluice_tests::flood::Kind;
use sluice_tests::lab::{CLIENT4, FAR_CLIENT4, Family, Lab};
use sluice_tests::metrics::Metrics;
use sluice_tests::peer::{DOWN, Ending, Pattern, Route, UP, client_closes_first, exchange};

use crate::basics::flood;
use crate::filters::{connect_from, is_answered};

both_modes![
    a_changed_set_file_takes_effect_and_a_broken_one_changes_nothing,
    a_large_set_is_read_again_without_disturbing_transfers,
    bans_cut_clients_until_they_are_lifted,
];

const MIB: u64 = 1 << 20;
/// Files are looked at once a second, by a thread that may have to wait for its core.
const NOTICED: Duration = Duration::from_secs(15);

/// Writes a file anew, as programs do that others read from.
fn put(path: &str, text: &str) {
    let new = format!("{path}.new");
    fs::write(&new, text).expect("the directory can be written");
    fs::rename(new, path).expect("the file can be renamed");
}

/// Connections of the far client that a rule or a ban cuts and gives back.
struct Cut<'lab> {
    lab: &'lab Lab,
    /// Those on which nobody has spoken in vain: the longer a sender is not answered, the longer it waits until it tries again.
    fresh: Vec<(TcpStream, TcpStream)>,
    silenced: Vec<(TcpStream, TcpStream)>,
    /// Where nobody who knocks is let in: its connections stand in the backlog.
    _door: TcpListener,
}

/// The service that only hears knocking.
const DOOR: u16 = 7002;

impl<'lab> Cut<'lab> {
    fn of(route: &Route<'lab>, listener: &TcpListener) -> Cut<'lab> {
        let door = Route::v4(route.lab, DOOR).listen();
        let fresh = (0..5).map(|_| connect_from(route, listener, FAR_CLIENT4)).collect();
        Cut { lab: route.lab, fresh, silenced: Vec::new(), _door: door }
    }

    /// Waits until new connections are (or are no longer) answered.
    fn until_answered(&self, answered: bool) {
        let deadline = Instant::now() + NOTICED;
        while is_answered(self.lab, FAR_CLIENT4, DOOR) != answered {
            assert!(Instant::now() < deadline, "answered is not {answered} within {NOTICED:?}");
            // Whoever knocks as fast as he can has the service's every connection before the file is read.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What is said now on a connection that stands is not heard.
    fn speaks_in_vain(&mut self) {
        let (mut client, mut server) = self.fresh.pop().expect("there are enough");
        client.write_all(b"?").expect("the kernel takes it");
        server.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout can be set");
        let heard = server.read(&mut [0]);
        assert!(heard.is_err(), "{heard:?} came through");
        self.silenced.push((client, server));
    }

    /// What was said last in vain arrives after all.
    fn is_heard(&mut self) {
        let (client, mut server) = self.silenced.pop().expect("somebody has spoken");
        server.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
        let mut heard = [0];
        server.read_exact(&mut heard).expect("the kernel tries again");
        assert_eq!(&heard, b"?");
        exchange(&client, &server);
    }
}

fn two_services() -> [Service; 2] {
    [Service::new("raw", 7001), Service::new("door", DOOR)]
}

fn a_changed_set_file_takes_effect_and_a_broken_one_changes_nothing(mode: Mode) {
    let lab = Lab::two_arms();
    let without = "192.0.2.0/24\n2001:db8:bad::/48\n";
    let with = format!("{without}# the far client\n{FAR_CLIENT4}\n");
    let file = lab.write("list", without);
    let rules = format!(
        "[[set]]\nname = \"list\"\nprefixes = [\"192.0.2.77/32\"]\nfiles = [\"{file}\"]\n\
         [[rule]]\nname = \"list\"\naction = \"drop\"\nsource = \"@list\"\n"
    );
    let sluice = Sluice::start(&lab, &Setup::of(two_services()).mode(mode).tables(&rules));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (near_client, near_server) = connect_from(&route, &listener, CLIENT4);
    let mut far = Cut::of(&route, &listener);
    let prefixes = |metrics: &Metrics| metrics.sum("sluice_set_prefixes", &[("set", "list")]);
    let failures = |metrics: &Metrics| metrics.sum("sluice_set_load_failures_total", &[("set", "list")]);
    let before = sluice.metrics();

    put(&file, &with);
    far.until_answered(false);
    far.speaks_in_vain();
    exchange(&near_client, &near_server);
    let added = sluice.metrics();
    assert_eq!(prefixes(&added), prefixes(&before) + 1, "{added}");
    assert!(added.cut("list") >= 2 && added.cut("list") == added.dropped(DropReason::Rule), "{added}");

    for (wrong, place) in [(format!("{without}nonsense\n"), ":3:"), (String::new(), "")] {
        let failed = failures(&sluice.metrics());
        put(&file, &wrong);
        sluice.metrics_when("the broken file is noticed", NOTICED, |metrics| failures(metrics) > failed);
        sluice.logged(&["list", &format!("{file}{place}"), "the set stays as it was"], NOTICED);
        assert!(!is_answered(&lab, FAR_CLIENT4, DOOR), "the old set is in force");
        exchange(&near_client, &near_server);
    }
    fs::remove_file(&file).expect("the file is there");
    let metrics = sluice.metrics_when("the file is missed", NOTICED, |metrics| failures(metrics) == 3);
    assert_eq!(prefixes(&metrics), prefixes(&added), "{metrics}");
    far.speaks_in_vain();

    put(&file, without);
    far.until_answered(true);
    far.is_heard();
    exchange(&near_client, &near_server);
    let metrics = sluice.metrics();
    assert_eq!((prefixes(&metrics), failures(&metrics)), (prefixes(&before), 3), "{metrics}");
}

#[test]
fn a_start_with_a_spoilt_list_and_spoilt_bans_has_those_that_were_good_last() {
    let lab = Lab::two_arms();
    let file = lab.write("list", &format!("{FAR_CLIENT4}\n"));
    let bans = lab.write("bans", "198.18.0.0/15 never\n");
    let tables = format!(
        "[[set]]\nname = \"list\"\nfiles = [\"{file}\"]\n[bans]\nfile = \"{bans}\"\n\
         [[rule]]\nname = \"list\"\naction = \"drop\"\nsource = \"@list\"\n"
    );
    let setup = Setup::of(two_services()).tables(&tables);
    let stale = |metrics: &Metrics| {
        [metrics.sum("sluice_set_stale", &[("set", "list")]), metrics.sum("sluice_bans_stale", &[])]
    };
    let door = Route::v4(&lab, DOOR).listen();
    let mut sluice = Sluice::start(&lab, &setup);
    sluice.metrics_when("the bans are in force", NOTICED, |metrics| metrics.sum("sluice_bans", &[]) == 1);
    assert_eq!(stale(&sluice.metrics()), [0, 0]);
    assert!(sluice.terminate(Duration::from_secs(60)).success());
    drop(sluice);

    put(&file, "<html>sign in to the wireless network</html>\n");
    put(&bans, "198.18.0.0/15 never\n<html>\n");
    let sluice = Sluice::start(&lab, &setup);
    sluice.logged(&[&format!("{file}:1:"), "until then the set is what it was at"], NOTICED);
    let metrics =
        sluice.metrics_when("the old bans are in force", NOTICED, |metrics| metrics.sum("sluice_bans", &[]) == 1);
    assert_eq!(stale(&metrics), [1, 1], "{metrics}");
    assert!(!is_answered(&lab, FAR_CLIENT4, DOOR), "the set of before is in force");
    assert!(is_answered(&lab, CLIENT4, DOOR));
    put(&file, "192.0.2.0/24\n");
    put(&bans, "");
    sluice.metrics_when("both are good again", NOTICED, |metrics| stale(metrics) == [0, 0]);
    drop(door);
}

fn a_large_set_is_read_again_without_disturbing_transfers(mode: Mode) {
    const PREFIXES: u32 = 100_000;
    let lab = Lab::two_arms();
    let list = |first: u32, last: &str| {
        let mut text = String::new();
        for number in 0..PREFIXES {
            // Every other /24, so that none can be joined.
            let _ = writeln!(text, "{}/24", Ipv4Addr::from(first + number * 512));
        }
        text + last + "\n"
    };
    let file = lab.write("list", "192.0.2.0/24\n");
    let rules = format!(
        "[[set]]\nname = \"list\"\nfiles = [\"{file}\"]\n\
         [[rule]]\nname = \"list\"\naction = \"drop\"\nsource = \"@list\"\n"
    );
    let sluice = Sluice::start(&lab, &Setup::of(two_services()).mode(mode).tables(&rules));
    let loaded = |last: &str, first: u32| {
        put(&file, &list(first, last));
        sluice.metrics_when("the list is read", NOTICED, |metrics| {
            metrics.sum("sluice_set_prefixes", &[("set", "list")]) > u64::from(PREFIXES)
        })
    };
    let door = Route::v4(&lab, DOOR).listen();
    let standing_route = Route::v4(&lab, DOOR);
    let (client, server) = connect_from(&standing_route, &door, CLIENT4);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let transfers = scope.spawn(|| {
            let mut transfers = 0;
            while transfers == 0 || !done.load(Ordering::Relaxed) {
                let octets = 16 * MIB;
                let seen = client_closes_first(&Route::v4(&lab, 7001), octets);
                assert_eq!(seen.by_server, Pattern::heard(UP, octets, Ending::Eof));
                assert_eq!(seen.by_client, Pattern::heard(DOWN, octets, Ending::Eof));
                transfers += 1;
            }
            transfers
        });
        // 11.0.0.0 and from there 100,000 networks of /23 in width.
        let metrics = loaded(&format!("{FAR_CLIENT4}/32"), 11 << 24);
        assert!(metrics.sum("sluice_sets_memory_bytes", &[]) > 0, "{metrics}");
        let deadline = Instant::now() + NOTICED;
        while is_answered(&lab, FAR_CLIENT4, DOOR) {
            assert!(Instant::now() < deadline, "the list does not take effect");
            std::thread::sleep(Duration::from_millis(20));
        }
        put(&file, "192.0.2.0/24\n");
        sluice.metrics_when("the short list is read", NOTICED, |metrics| {
            metrics.sum("sluice_set_prefixes", &[("set", "list")]) == 1
        });
        loaded("192.0.2.0/24", 12 << 24);
        done.store(true, Ordering::Relaxed);
        eprintln!("{} transfers", transfers.join().expect("the transfers' thread"));
    });
    exchange(&client, &server);
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_set_load_failures_total", &[]), 0, "{metrics}");
    assert_eq!(metrics.dropped(DropReason::Rule), metrics.cut("list"), "{metrics}");
    assert!(is_answered(&lab, FAR_CLIENT4, DOOR), "it is not on the last list");
}

fn bans_cut_clients_until_they_are_lifted(mode: Mode) {
    let lab = Lab::two_arms();
    // It need not be there at first.
    let file = lab.path("bans");
    let sluice =
        Sluice::start(&lab, &Setup::of(two_services()).mode(mode).tables(&format!("[bans]\nfile = \"{file}\"\n")));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let (near_client, near_server) = connect_from(&route, &listener, CLIENT4);
    let mut far = Cut::of(&route, &listener);
    assert_eq!(sluice.metrics().dropped(DropReason::Banned), 0);

    put(&file, &format!("# by hand\n{FAR_CLIENT4} never scanner\n"));
    far.until_answered(false);
    far.speaks_in_vain();
    exchange(&near_client, &near_server);
    let metrics = sluice.metrics();
    assert!(metrics.dropped(DropReason::Banned) >= 2, "{metrics}");
    assert_eq!(metrics.sum("sluice_bans", &[]), 1, "{metrics}");

    put(&file, &format!("{CLIENT4} never\n{FAR_CLIENT4} tomorrow\n"));
    sluice.logged(&[&format!("{file}:2:"), "tomorrow", "the bans stay as they were"], NOTICED);
    far.speaks_in_vain();
    exchange(&near_client, &near_server);

    put(&file, "");
    far.until_answered(true);
    far.is_heard();
    exchange(&near_client, &near_server);
}

#[test]
fn a_ban_ends_by_itself_at_its_time() {
    let lab = Lab::two_arms();
    let file = lab.write("bans", "2001:db8::/64 never somebody else\n");
    let sluice = Sluice::start(&lab, &Setup::of(two_services()).tables(&format!("[bans]\nfile = \"{file}\"\n")));
    let route = Route::v4(&lab, 7001);
    let listener = route.listen();
    let mut far = Cut::of(&route, &listener);
    let until = SystemTime::now() + Duration::from_secs(6);
    put(&file, &format!("203.0.113.0/24 {} a while\n", humantime::format_rfc3339_seconds(until)));
    far.until_answered(false);
    far.speaks_in_vain();
    far.until_answered(true);
    // The file has whole seconds.
    assert!(SystemTime::now() + Duration::from_secs(1) > until, "it ended too early");
    far.is_heard();
    assert!(sluice.metrics().dropped(DropReason::Banned) >= 2);
}

/// The packets of a sample: their length, the whole frame's, their comment.
fn sample(path: &str) -> Vec<(usize, u32, String)> {
    let octets = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut reader = PcapNgReader::new(&octets[..]).expect("a pcapng file");
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.expect("whole blocks") {
            let comment = packet.options.iter().find_map(|option| match option {
                EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
                _ => None,
            });
            packets.push((packet.data.len(), packet.original_len, comment.expect("a comment")));
        }
    }
    packets
}

fn sample_setup(lab: &Lab, rate: &str, size: &str) -> (Setup, String) {
    let file = lab.path("dropped.pcapng");
    let tables = format!(
        "[[rule]]\nname = \"rst-tool\"\naction = \"drop\"\nflags = \"rst\"\nwindow = 64240\n\
         [sample]\nfile = \"{file}\"\nrate = \"{rate}\"\nsnap = 128\nmax_size = \"{size}\"\n"
    );
    (Setup::of([Service::new("raw", 7001)]).tables(&tables), file)
}

fn written(metrics: &Metrics) -> u64 {
    metrics.sum("sluice_sample_packets_total", &[])
}

#[test]
fn a_sample_of_dropped_packets_says_why_each_was_dropped() {
    const COUNT: u64 = 3_000;
    let lab = Lab::two_arms();
    let (setup, file) = sample_setup(&lab, "1/min burst 40", "64MiB");
    let sluice = Sluice::start(&lab, &setup);
    assert_eq!(flood(&lab, Kind::Ack, Family::V6, 7001, 20, 20_000).sent, 20);
    sluice.metrics_when("ACKs of nobody are dropped", NOTICED, |metrics| metrics.dropped(DropReason::BadCookie) == 20);
    assert_eq!(flood(&lab, Kind::Rst, Family::V4, 7001, COUNT, 20_000).sent, COUNT);
    let metrics = sluice.metrics_when("the flood is dropped", NOTICED, |metrics| metrics.cut("rst-tool") == COUNT);
    assert!(metrics.dropped(DropReason::Rule) == COUNT, "{metrics}");
    let metrics = sluice.metrics_when("the sample is written", NOTICED, |metrics| written(metrics) >= 40);
    let packets = sample(&file);
    let of = |wanted: &str| packets.iter().filter(|(_, _, comment)| comment == wanted).count() as u64;
    // One a minute more than what is kept at once.
    assert!((40..=45).contains(&(packets.len() as u64)), "{} packets of 40 were kept", packets.len());
    assert!(packets.len() as u64 >= written(&metrics), "{metrics}");
    let metrics = sluice.metrics();
    assert!(packets.len() as u64 <= written(&metrics), "{metrics}");
    assert_eq!(metrics.sum("sluice_sample_lost_total", &[]), 0, "{metrics}");
    assert!(of("drop: rule \"rst-tool\"") >= 10, "{packets:?}");
    assert_eq!(of("drop: bad_cookie"), 20, "{packets:?}");
    for (kept, whole, comment) in &packets {
        match comment.as_str() {
            "drop: rule \"rst-tool\"" => assert_eq!((*kept, *whole), (54, 54)),
            "drop: bad_cookie" => assert_eq!((*kept, *whole), (74, 74)),
            // The kernel's own multicast.
            other => assert!(other.starts_with("drop: ") && *kept <= 128, "{other}: {kept} octets of {whole}"),
        }
    }
    let shown = lab.appliance.output("tcpdump", &["-nr", &file]);
    assert!(shown.status.success(), "{shown:?}");
    let lines = String::from_utf8_lossy(&shown.stdout).lines().count();
    assert_eq!(lines, packets.len(), "tcpdump shows each");
}

#[test]
fn a_sample_that_is_full_is_begun_anew_and_two_files_are_the_most() {
    const ROUND: u64 = 900;
    let lab = Lab::two_arms();
    let (setup, file) = sample_setup(&lab, "1/min burst 10000", "64KiB");
    let sluice = Sluice::start(&lab, &setup);
    for round in 1..=3 {
        // No more at once than may wait to be written.
        assert_eq!(flood(&lab, Kind::Rst, Family::V4, 7001, ROUND, 20_000).sent, ROUND);
        let metrics =
            sluice.metrics_when("the sample is written", NOTICED, |metrics| written(metrics) >= round * ROUND);
        assert_eq!(metrics.sum("sluice_sample_lost_total", &[]), 0, "{metrics}");
    }
    let (old, new) = (sample(&format!("{file}.1")), sample(&file));
    assert!(old.len() > 300 && !new.is_empty(), "{} and {} packets", old.len(), new.len());
    for path in [format!("{file}.1"), file.clone()] {
        let size = fs::metadata(&path).expect("the file is there").len();
        assert!(size <= 64 << 10, "{path} has {size} octets");
    }
    let files = fs::read_dir(lab.dir()).expect("the directory can be read").filter_map(Result::ok);
    let samples = files.filter(|entry| entry.file_name().to_string_lossy().starts_with("dropped")).count();
    assert_eq!(samples, 2);
    let all = old.iter().chain(&new);
    assert!(all.clone().filter(|(.., comment)| comment == "drop: rule \"rst-tool\"").count() > 500);
}

#[test]
fn what_filters_cannot_use_is_refused_at_start_up_with_its_place() {
    let lab = Lab::two_arms();
    let broken = lab.write("broken", "192.0.2.0/24\n2001:db8::/32\n192.0.2.256\n");
    let mut random = vec![0; 4096];
    fastrand::Rng::with_seed(7).fill(&mut random);
    let database = lab.path("random.mmdb");
    fs::write(&database, random).expect("the directory can be written");
    let missing = lab.path("missing");
    let set = |keys: &str| {
        format!("[[set]]\nname = \"list\"\n{keys}\n[[rule]]\nname = \"list\"\naction = \"drop\"\nsource = \"@list\"\n")
    };
    let nowhere = lab.path("no/such/directory/dropped.pcapng");
    let expression = "tcp[tcpflags] & tcp-syn !=";
    let cases = [
        (set(&format!("files = \"{missing}\"")), 2, missing.clone()),
        (set(&format!("files = \"{broken}\"")), 2, format!("{broken}:3:")),
        (set(&format!("database = \"{database}\"\ncountries = \"DE\"")), 2, database.clone()),
        (
            format!("[[rule]]\nname = \"pcap\"\naction = \"drop\"\npcap = \"{expression}\"\n"),
            2,
            "sluice.toml:LINE:".to_owned(),
        ),
        (format!("[sample]\nfile = \"{nowhere}\"\n"), 1, nowhere.clone()),
    ];
    for (tables, code, place) in cases {
        let setup = Setup::of([Service::new("raw", 7001)]).tables(&tables);
        let toml = setup.toml(&lab);
        let line = toml.lines().position(|line| line.starts_with("pcap =")).map_or(0, |index| index + 1);
        let place = place.replace("LINE", &line.to_string());
        let mut sluice = Sluice::launch(&lab, &setup);
        let status = sluice.process().wait(Duration::from_secs(20));
        let text = sluice.process().text();
        assert_eq!(status.code(), Some(code), "{tables}{text}");
        assert!(text.contains(&place), "{place} is missing in: {text}");
        assert!(text.contains("; ") && !text.contains("panicked") && !text.contains("sluice: ready"), "{text}");
        if code == 2 {
            // Who checks first is told the same.
            let file = Path::new(&lab.path("sluice.toml")).to_owned();
            let output = check(&lab, file.to_str().expect("a UTF-8 path"));
            let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(&place), "{place} is missing in: {said}");
        }
    }
}
