//! A wall clock that is set while the appliance runs: by an hour, one way and the other. Only the appliance's process sees it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sluice_tests::appliance::{Mode, Service, Setup, Sluice, binary};
use sluice_tests::lab::{Family, Lab, SERVICE4};
use sluice_tests::peer::accept_with_header;

use crate::basics::SOON;

both_modes![a_clock_that_is_set_is_followed_by_headers_and_log_without_a_restart];

const HOUR: i64 = 3_600;
const PORT: u16 = 7_100;
/// How far apart two readings of the time may lie on a busy machine.
const NEAR: Duration = Duration::from_secs(20);

/// The wall clock of a process.
struct WallClock {
    file: String,
    library: String,
}

impl WallClock {
    fn new(lab: &Lab) -> WallClock {
        let source = lab.write("wall_clock.c", include_str!("../../src/wall_clock.c"));
        let (file, library) = (lab.path("wall-clock"), lab.path("wall_clock.so"));
        let built = lab.server.output("cc", &["-shared", "-fPIC", "-O1", "-Wall", "-o", &library, &source]);
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let clock = WallClock { file, library };
        clock.set(0);
        clock
    }

    /// Sets it to so many seconds after the machine's.
    fn set(&self, ahead: i64) {
        let file = fs::File::options().write(true).create(true).truncate(false).open(&self.file).expect("a file");
        file.write_all_at(&ahead.to_ne_bytes(), 0).expect("8 octets written");
    }
}

/// What a clock shows that is so far ahead of the machine's.
fn ahead_by(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { SystemTime::now() - distance } else { SystemTime::now() + distance }
}

fn near(one: SystemTime, other: SystemTime) -> bool {
    one.duration_since(other).unwrap_or_else(|error| error.duration()) < NEAR
}

fn a_clock_that_is_set_is_followed_by_headers_and_log_without_a_restart(mode: Mode) {
    let lab = Lab::two_arms();
    let clock = WallClock::new(&lab);
    let keys = lab.write("proxy.keys", "7 00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n");
    fs::set_permissions(&keys, fs::Permissions::from_mode(0o600)).expect("a mode for the keys");
    let listener = lab.server.listen(Family::V4.server(PORT));
    let service = Service::new("raw", PORT).proxy_protocol("v2").key("proxy_header", "{ authenticate = true }");
    let (preload, file) = (format!("LD_PRELOAD={}", clock.library), format!("WALL_CLOCK={}", clock.file));
    let setup = Setup::of([service])
        .mode(mode)
        .through(&["env", &preload, &file])
        .tables(&format!("[proxy_keys]\nfile = \"{keys}\""));
    let sluice = Sluice::start(&lab, &setup);

    // A new connection, and whether its header was signed at about this time.
    let connect = |about: SystemTime| -> (TcpStream, bool) {
        let mut client = lab.client.connect((SERVICE4, PORT).into()).expect("a connection");
        client.write_all(b"!").expect("an octet sent");
        let (mut server, octets) = accept_with_header(&listener);
        let mut said = [0];
        server.read_exact(&mut said).expect("what the client said");
        assert_eq!(&said, b"!");
        let header = lab.path("header");
        fs::write(&header, &octets).expect("the header kept");
        let at = about.duration_since(UNIX_EPOCH).expect("after 1970").as_millis().to_string();
        let verify = ["proxy-header", "verify", "--keys", &keys, "--at", &at, "--max-age", "30s", &header];
        let output = lab.server.output(&binary(), &verify);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
        (client, output.status.success())
    };

    for ((before, after), steps) in [(0, HOUR), (HOUR, -HOUR), (-HOUR, 0)].into_iter().zip(1_u64..) {
        let (spanning, signed) = connect(ahead_by(before));
        assert!(signed, "signed at another time than {before} s ahead");
        clock.set(after);
        sluice.metrics_when("the clock is followed", SOON, |metrics| {
            metrics.sum("sluice_clock_steps_total", &[]) == steps
        });
        let (next, signed) = connect(ahead_by(after));
        assert!(signed, "signed at another time than {after} s ahead");
        for client in [spanning, next] {
            let from = client.local_addr().expect("an address");
            drop(client);
            let record = sluice.record_of(from, SOON);
            let now = ahead_by(after);
            assert!(near(record.opened, now) && near(record.ended, now), "{after}: {record:?}");
            let lived = record.ended.duration_since(record.opened).expect("it ended later").as_secs_f64();
            assert!((lived - record.duration_ms / 1e3).abs() < 0.001, "{record:?}");
        }
    }
    sluice.logged(&["WARN", "clock was set"], SOON);
}
