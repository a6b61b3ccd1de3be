//! Wrong configurations and missing parts: a clear error, an exit code, no panic, no half-started appliance.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sluice_tests::appliance::{METRICS, Service, Setup, Sluice, binary, check};
use sluice_tests::lab::Lab;

fn setup() -> Setup {
    Setup::of([Service::new("raw", 7001)])
}

#[test]
fn every_wrong_file_is_refused_with_file_line_and_exit_code_2() {
    let lab = Lab::two_arms();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tests/bad");
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.expect("the directory can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 25, "only {} wrong files", files.len());
    for file in &files {
        let path = file.to_str().expect("a UTF-8 path");
        for command in ["check", "run"] {
            let output = lab.appliance.output(&binary(), &[command, "-c", path]);
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(2), "{command} {path}: {text}");
            assert!(!text.contains("panicked"), "{command} {path}: {text}");
            let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
            let line = text.split(&format!("{name}:")).nth(1).and_then(|rest| rest.split([':', ' ', '\n']).next());
            assert!(line.is_some_and(|line| line.parse::<u32>().is_ok()), "{command}: no file and line in: {text}");
        }
    }
}

#[test]
fn a_good_file_is_understood_and_changes_nothing() {
    let lab = Lab::two_arms();
    let file = lab.write("good.toml", &setup().toml(&lab));
    let output = check(&lab, &file);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for part in ["wan", "lan", "raw", "198.51.100.10:7001", "10.0.0.5:7001"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let version = lab.appliance.output(&binary(), &["--version"]);
    assert!(version.status.success() && version.stdout.starts_with(b"sluice "));
    let help = lab.appliance.output(&binary(), &["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("check"));
    assert_eq!(check(&lab, "/nonexistent/sluice.toml").status.code(), Some(2));
}

/// Starts sluice, expects it to give up, and returns what it said.
fn gives_up(lab: &Lab, setup: &Setup) -> String {
    let mut sluice = Sluice::launch(lab, setup);
    let status = sluice.process().wait(Duration::from_secs(20));
    let text = sluice.process().text();
    assert!(status.code().is_some_and(|code| code != 0), "{status}: {text}");
    assert!(!text.contains("panicked") && !text.contains("sluice: ready"), "{text}");
    let listening = lab.appliance.sh("ss -Htlnp | grep sluice || true");
    assert!(listening.is_empty(), "half-started: {listening}");
    text
}

#[test]
fn a_missing_device_is_named() {
    let lab = Lab::two_arms();
    let text = gives_up(&lab, &setup().wan_device("net_af_packet0", "iface=nosuch0"));
    assert!(text.contains("wan") && text.contains("nosuch0"), "{text}");
    let text = gives_up(&lab, &setup().wan_device("0000:fe:1f.7", ""));
    assert!(text.contains("0000:fe:1f.7"), "{text}");
}

#[test]
fn the_default_packet_pool_fits_into_ordinary_memory() {
    let lab = Lab::two_arms();
    let mut sluice = Sluice::start(&lab, &setup().runtime(""));
    assert_eq!(sluice.metrics().sum("sluice_pool_frames_capacity", &[]), 65_535);
    assert_eq!(sluice.terminate(Duration::from_secs(5)).code(), Some(0));
}

#[test]
fn missing_hugepages_are_named_when_required() {
    let lab = Lab::two_arms();
    let file = lab.write("huge.toml", &setup().hugepages("require").toml(&lab));
    // Whatever this machine has reserved, the process below sees none: a mount namespace of its own, without hugetlbfs
    // and with an empty list of reserved pages.
    let script = format!(
        "umount -a -t hugetlbfs 2>/dev/null || true\n\
         mount -t tmpfs none /sys/kernel/mm/hugepages\n\
         mkdir /sys/kernel/mm/hugepages/hugepages-2048kB\n\
         for f in nr_hugepages free_hugepages resv_hugepages surplus_hugepages; do\n\
         echo 0 > /sys/kernel/mm/hugepages/hugepages-2048kB/$f; done\n\
         exec timeout 30 {} run -c {file}",
        binary()
    );
    let output = lab.appliance.output("unshare", &["--mount", "--propagation", "private", "sh", "-c", &script]);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0 && code != 124), "{code:?}: {text}");
    assert!(text.contains("hugepages") && !text.contains("panicked") && !text.contains("sluice: ready"), "{text}");
}

#[test]
fn a_busy_metrics_port_is_named() {
    let lab = Lab::two_arms();
    let _busy = lab.appliance.listen(METRICS.parse().expect("an address"));
    let text = gives_up(&lab, &setup());
    assert!(text.contains(METRICS) && text.contains("metrics"), "{text}");
}

#[test]
fn a_second_appliance_on_an_interface_or_with_a_file_prefix_that_is_taken_is_refused() {
    let lab = Lab::two_arms();
    let setup = setup().runtime("mbufs = 16383\ndpdk_args = \"--file-prefix=taken\"");
    let first = Sluice::start(&lab, &setup);
    let toml =
        setup.toml(&lab).replace(METRICS, "127.0.0.1:9999").replace("connections = \"", "connections = \"off\" # \"");
    let refused = |name: &str, toml: &str| {
        let path = lab.write(name, toml);
        let output = lab.appliance.output(&binary(), &["run", "-c", &path]);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(!text.contains("panicked") && !text.contains("sluice: ready"), "{text}");
        text
    };
    let text = refused("second.toml", &toml);
    assert!(text.contains("port \"wan\": the interface \"p0\" is served by another sluice"), "{text}");
    // On devices of its own, but with the prefix of the first.
    let own = toml.replace("net_af_packet", "net_null");
    let own: String = own.lines().filter(|line| !line.starts_with("args =")).map(|line| format!("{line}\n")).collect();
    let text = refused("third.toml", &own);
    assert!(text.contains("the file prefix \"taken\" is used by another process"), "{text}");
    drop(first);
    // What has ended holds nothing.
    drop(Sluice::start(&lab, &setup));
}

#[test]
fn start_up_prints_each_port_service_and_worker_and_the_mac() {
    let lab = Lab::two_arms();
    let sluice = Sluice::start(&lab, &setup().connections("stdout"));
    let lines = sluice.stdout();
    let mac = lab.appliance.mac_of("p0").map(|octet| format!("{octet:02x}")).join(":");
    let has = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(has(&["wan", &mac]), "{lines:#?}");
    assert!(has(&["lan"]) && has(&["raw", "198.51.100.10:7001"]) && has(&["worker"]), "{lines:#?}");
    assert_eq!(lines.last().map(String::as_str), Some("sluice: ready"));
    // With connections = "stdout", an ended session is a JSON line here.
    let route = sluice_tests::peer::Route::v4(&lab, 7001);
    let listener = route.listen();
    let (client, server, address) = route.connect(&listener);
    drop(client);
    drop(server);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let found = sluice.stdout().into_iter().filter(|line| line.starts_with('{')).find_map(|line| {
            let record: sluice_tests::appliance::Record = serde_json::from_str(&line).expect("a JSON line");
            (record.client == address).then_some(record)
        });
        if let Some(record) = found {
            assert_eq!((record.service.as_str(), record.cause.as_str()), ("raw", "closed"));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no JSON line: {:#?}", sluice.stdout());
        std::thread::sleep(Duration::from_millis(20));
    }
}
