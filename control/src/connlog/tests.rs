use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use sluice_config::ConnectionLog as Destination;
use sluice_tcpstack::record::EndCause;

use super::sink::Output;
use super::*;
use crate::fake::{self, Fake};

fn text(record: &sluice_tcpstack::record::SessionRecord) -> String {
    let config = fake::config();
    let source = Fake::new(&config);
    serde_json::to_string(&Line::new(record, &config, |at| source.wall_clock(at))).unwrap()
}

#[test]
fn ended_connection_is_one_json_line_with_every_field() {
    assert_eq!(
        text(&fake::record()),
        concat!(
            r#"{"opened":"2026-01-02T03:04:06.000250Z","ended":"2026-01-02T03:04:08.500250Z","service":"trading","#,
            r#""worker":1,"client":"203.0.113.7:51000","via":null,"listen":"198.51.100.10:443","source":"10.0.0.2:40001","#,
            r#""upstream":"10.0.0.5:443","bytes_to_upstream":517,"bytes_to_client":90210,"connect_ms":0.75,"#,
            r#""duration_ms":2500.0,"cause":"client_reset","blame":"client"}"#,
        )
    );
}

#[test]
fn connection_that_was_never_dialled_has_null_where_nothing_is_known() {
    let mut record = fake::record();
    record.client = "[2001:db8::7]:51000".parse().unwrap();
    (record.upstream, record.source, record.target, record.connected) = (None, None, None, None);
    record.cause = EndCause::FirstData;
    let line: serde_json::Value = serde_json::from_str(&text(&record)).unwrap();
    assert_eq!(line["client"], "[2001:db8::7]:51000");
    for field in ["source", "upstream", "connect_ms"] {
        assert!(line[field].is_null(), "{field}: {line}");
    }
    assert_eq!((line["cause"].as_str(), line["blame"].as_str()), (Some("first_data"), Some("client")));
}

/// Its lines say when it began and ended by the clock as it stands when they are written: that is the one to find it by, and the
/// duration between them is true.
#[test]
fn connection_during_which_the_clock_was_set_is_told_by_the_clock_put_right() {
    let (config, record) = (fake::config(), fake::record());
    let mut source = Fake::new(&config);
    for (wrong, lines) in [
        (fake::EPOCH + Duration::from_secs(3_600), ["2026-01-02T03:04:06.000250Z", "2026-01-02T03:04:08.500250Z"]),
        (fake::EPOCH - Duration::from_secs(3_600), ["2026-01-02T03:04:06.000250Z", "2026-01-02T03:04:08.500250Z"]),
    ] {
        source.clock = sluice_dataplane::Clock::start_at(std::time::UNIX_EPOCH + wrong);
        let put_right = sluice_filters::units::Micros(2_000_000);
        let right = std::time::UNIX_EPOCH + fake::EPOCH + Duration::from_secs(2);
        assert!(source.clock.follow(put_right, right).is_some());
        let line = Line::new(&record, &config, |at| source.wall_clock(at));
        let line = serde_json::to_value(&line).unwrap();
        assert_eq!([&line["opened"], &line["ended"]], lines);
        assert_eq!(line["duration_ms"], 2_500.0);
    }
}

#[test]
fn clock_before_1970_is_written_as_1970() {
    let config = fake::config();
    let line = Line::new(&fake::record(), &config, |_| std::time::UNIX_EPOCH - Duration::from_secs(1));
    let line = serde_json::to_value(&line).unwrap();
    assert_eq!(line["opened"], "1970-01-01T00:00:00.000000Z");
}

fn file_sink(path: &std::path::Path) -> (Sink, Arc<LogCounters>) {
    let counters = Arc::new(LogCounters::default());
    let output = Output::open(&Destination::File(path.to_owned())).unwrap();
    (Sink::new(output, Arc::clone(&counters)), counters)
}

#[test]
fn file_is_appended_to_and_closed_to_others() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("connections.log");
    for n in 0..2 {
        let (mut sink, counters) = file_sink(&path);
        sink.push(&n);
        sink.flush(Instant::now());
        assert_eq!((counters.written.get(), counters.waiting.get()), (1, 0));
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "0\n1\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o007, 0);
}

#[test]
fn file_that_cannot_be_opened_is_refused_with_its_path_and_a_remedy() {
    let error = Output::open(&Destination::File("/nonexistent/connections.log".into())).unwrap_err().to_string();
    assert!(error.starts_with("log.connections: cannot append to /nonexistent/connections.log"), "{error}");
    assert!(error.contains("existing directory"), "{error}");
}

#[test]
fn renamed_file_is_followed_without_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let (path, rotated) = (directory.path().join("c.log"), directory.path().join("c.log.1"));
    let (mut sink, _) = file_sink(&path);
    let start = Instant::now();
    sink.push(&1);
    sink.flush(start);
    std::fs::rename(&path, &rotated).unwrap();
    sink.push(&2);
    sink.flush(start + Duration::from_secs(2));
    assert_eq!(std::fs::read_to_string(&rotated).unwrap(), "1\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
}

#[test]
fn truncated_file_goes_on_at_its_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let (mut sink, _) = file_sink(&path);
    sink.push(&1);
    sink.flush(Instant::now());
    std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    sink.push(&2);
    sink.flush(Instant::now());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "2\n");
}

#[test]
fn full_disk_is_tried_again_at_intervals_and_costs_lines_only_beyond_the_bound() {
    let (mut sink, counters) = file_sink(std::path::Path::new("/dev/full"));
    let start = Instant::now();
    let line = "x".repeat(1 << 20);
    for n in 0..6 {
        sink.push(&line);
        sink.flush(start + Duration::from_millis(n));
    }
    assert_eq!(counters.write_errors.get(), 1, "a failed write rests");
    assert_eq!((counters.waiting.get(), counters.lost.get()), (4, 2));
    sink.flush(start + Duration::from_secs(2));
    assert_eq!(counters.write_errors.get(), 2);
    sink.finish();
    assert_eq!((counters.waiting.get(), counters.lost.get(), counters.written.get()), (0, 6, 0));
}

#[test]
fn line_cut_by_a_failed_write_is_completed_when_writing_works_again() {
    // A socket, because the standard library can make one non-blocking: it fails in the middle of a long line.
    let (mut reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
    writer.set_nonblocking(true).unwrap();
    let counters = Arc::new(LogCounters::default());
    let mut sink = Sink::new(Output::Stdout(OwnedFd::from(writer).into()), Arc::clone(&counters));
    let start = Instant::now();
    let line = "y".repeat(1 << 20);
    sink.push(&line);
    sink.push(&7);
    sink.flush(start);
    assert_eq!((counters.written.get(), counters.waiting.get()), (0, 2), "a socket holds less than the line");
    let drained = std::thread::spawn(move || {
        let mut all = String::new();
        reader.read_to_string(&mut all).unwrap();
        all
    });
    let mut now = start;
    while counters.waiting.get() > 0 {
        now += Duration::from_secs(2);
        sink.flush(now);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(sink);
    assert_eq!(drained.join().unwrap(), format!("\"{line}\"\n7\n"));
    assert_eq!((counters.written.get(), counters.lost.get()), (2, 0));
}

#[test]
fn every_record_queued_before_the_end_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.log");
    let config = Arc::new(fake::config());
    let source = Arc::new(Fake::new(&config));
    let output = Output::open(&Destination::File(path.clone())).unwrap();
    let log = ConnectionLog::start(output, Arc::clone(&config), source.clone()).unwrap();
    for n in 0..10_000 {
        source.end(sluice_tcpstack::record::SessionRecord { bytes_to_client: n, ..fake::record() });
    }
    let counters = log.counters();
    log.finish(FINISH_GRACE);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 10_000);
    assert!(text.lines().last().unwrap().contains(r#""bytes_to_client":9999,"#));
    assert_eq!((counters.written.get(), counters.lost.get()), (10_000, 0));
}

#[test]
fn log_that_is_off_still_empties_the_queue() {
    let config = Arc::new(fake::config());
    let source = Arc::new(Fake::new(&config));
    let log = ConnectionLog::start(Output::Off, Arc::clone(&config), source.clone()).unwrap();
    source.end(fake::record());
    log.finish(FINISH_GRACE);
    assert_eq!(source.records_waiting(), 0);
}

#[test]
fn reader_that_takes_nothing_does_not_hold_up_the_end() {
    let (_reader, writer) = std::io::pipe().unwrap();
    let config = Arc::new(fake::config());
    let source = Arc::new(Fake::new(&config));
    let output = Output::Stdout(OwnedFd::from(writer).into());
    for _ in 0..1_000 {
        source.end(fake::record());
    }
    let log = ConnectionLog::start(output, Arc::clone(&config), source.clone()).unwrap();
    let start = Instant::now();
    log.finish(Duration::from_millis(200));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn documentation_explains_every_field_and_cause() {
    let documentation = include_str!("../../../docs/operations.md");
    let line: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text(&fake::record())).unwrap();
    for field in line.keys() {
        assert!(documentation.contains(&format!("\n| `{field}` | ")), "{field}");
    }
    for cause in EndCause::ALL {
        let row = format!("\n| `{}` | `{}` | ", cause.as_str(), cause.blame().as_str());
        assert!(documentation.contains(&row), "{row}");
    }
    assert!(documentation.contains(&text(&fake::record())), "the example is a real line");
}

#[test]
fn a_pipe_without_a_reader_keeps_nobody_waiting_and_its_lines_come_when_there_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    // Both would wait for a reader.
    let (mut sink, counters) = file_sink(&path);
    sink.push(&1);
    sink.flush(Instant::now());
    assert_eq!((counters.written.get(), counters.waiting.get(), counters.write_errors.get()), (0, 1, 0));
    let mut reader = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    sink.push(&2);
    sink.flush(Instant::now());
    assert_eq!((counters.written.get(), counters.waiting.get()), (2, 0));
    let mut lines = [0; 4];
    reader.read_exact(&mut lines).unwrap();
    assert_eq!(&lines, b"1\n2\n");
    // A reader that takes nothing keeps nobody waiting either.
    let line = "x".repeat(1 << 16);
    for _ in 0..4 {
        sink.push(&line);
        sink.flush(Instant::now());
    }
    assert!(counters.waiting.get() > 0 && counters.write_errors.get() == 0);
}
