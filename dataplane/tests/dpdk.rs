//! The runtime on real DPDK ports: `net_null` and `net_ring`, ordinary memory, no privileges beyond what DPDK needs.
//!
//! DPDK starts once per process, so each test runs its body in a process of its own: this binary, called again for that
//! test alone.

use std::collections::HashSet;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::{Duration, Instant};

use sluice_config as config;
use sluice_dataplane::dpdk::{BURST, Burst, Frame, FreeList, TX_BUFFER, Transfer, TxBuffer, WorkerQueues};
use sluice_dataplane::error::StartError;
use sluice_dataplane::runtime::{Runtime, Signal, Stopper, Turn};
use sluice_filters::units::WorkerId;

const CHILD: &str = "SLUICE_DPDK_TEST";

/// Runs `body` in a process of its own, and tells how that ended and what it said; nothing in that process itself.
fn alone(test: &str, body: fn()) -> Option<(ExitStatus, String, String)> {
    if std::env::var_os(CHILD).is_some_and(|name| name == test) {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, test)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((output.status, text(&output.stdout), text(&output.stderr)))
}

/// Runs `body` in a process of its own, which must end well.
fn in_own_process(test: &str, body: fn()) {
    let Some((status, stdout, stderr)) = alone(test, body) else { return };
    assert!(status.success(), "{test}: {status}\n{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{test} panicked:\n{stderr}");
}

fn port(name: &str, device: &str, args: &str) -> config::Port {
    config::Port {
        name: name.into(),
        device: device.into(),
        args: args.into(),
        addresses: Vec::new(),
        gateways: Vec::<IpAddr>::new(),
        vlan: 0,
        mtu: 1500,
        promiscuous: false,
        source_check: config::SourceCheck::Loose,
    }
}

fn appliance(cores: &[u16], control_core: u16, ports: Vec<config::Port>) -> config::Config {
    config::Config {
        runtime: config::Runtime {
            cores: cores.to_vec(),
            control_core,
            hugepages: config::Hugepages::Off,
            dpdk_args: String::new(),
            drain: Duration::from_secs(1),
            mbufs: 8191,
            rx_descriptors: 512,
            tx_descriptors: 512,
            idle: config::Idle::Spin,
            ..config::Runtime::default()
        },
        ports,
        routes: Vec::new(),
        services: Vec::new(),
        sets: Vec::new(),
        warnings: Vec::new(),
        rules: Vec::new(),
        filters: config::Filters::default(),
        bans: None,
        peace: config::Peace::default(),
        sample: None,
        cookies: config::Cookies { seed_file: None, epoch: Duration::from_secs(64) },
        proxy_keys: None,
        metrics: None,
        log: config::Log { level: config::Level::Info, connections: config::ConnectionLog::Off },
    }
}

/// Runs a closure once, as a worker's only turn, then idles.
struct Once<F> {
    body: Option<F>,
    queues: WorkerQueues,
}

impl<F: FnOnce(&mut WorkerQueues)> Turn for Once<F> {
    fn turn(&mut self) {
        match self.body.take() {
            Some(body) => body(&mut self.queues),
            None => std::thread::sleep(Duration::from_micros(50)),
        }
    }

    fn finish(self) {}
}

/// Runs `body` as worker 0's only turn on `net_null0`, then stops. Asserts that no frame is lost.
fn on_one_worker(body: impl FnOnce(&mut WorkerQueues) + Send + 'static) {
    let mut runtime = Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_null0", "size=64")])).unwrap();
    let pool = runtime.pool_monitors().remove(0);
    let before = pool.usage().unwrap();
    assert_eq!((before.in_use, before.capacity), (0, 8191));
    let (stopper, inner) = (runtime.stopper(), pool.clone());
    runtime
        .install(WorkerId(0), move |queues| Once {
            queues,
            body: Some(move |queues: &mut WorkerQueues| {
                body(queues);
                assert_eq!(inner.usage().unwrap().in_use, 0, "all frames came back");
                stopper.stop();
            }),
        })
        .unwrap();
    runtime.run(|_| true).unwrap();
    assert_eq!(pool.usage(), None, "nothing is read from DPDK after its end");
}

fn queues(queues: &mut WorkerQueues) -> (&mut sluice_dataplane::dpdk::RxQueue, &mut sluice_dataplane::dpdk::TxQueue) {
    let port = &mut queues.ports[0];
    (port.rx.as_mut().unwrap(), port.tx.as_mut().unwrap())
}

#[test]
fn received_frames_come_back_to_the_pool() {
    in_own_process("received_frames_come_back_to_the_pool", || {
        on_one_worker(|all| {
            let (rx, tx) = queues(all);
            let (mut burst, mut buffer, mut free) = (Burst::new(), TxBuffer::new(), FreeList::new());
            let mut received = 0;
            for _ in 0..1000 {
                received += rx.burst(&mut burst);
                assert_eq!(burst.len(), BURST);
                for i in 0..burst.len() {
                    burst.prefetch(i);
                    assert_eq!(burst.get(i).unwrap().len(), 64);
                    match i % 4 {
                        0 => buffer.push(burst.take(i).unwrap()).unwrap(),
                        1 => free.push(burst.take(i).unwrap()),
                        2 => drop(burst.take(i)),
                        _ => {} // left in the burst, freed by the next
                    }
                }
                let sent = tx.offer(&mut buffer);
                assert_eq!((sent.frames, sent.bytes, sent.left), (8, 8 * 64, 0));
            }
            assert_eq!(received, 32_000);
        });
    });
}

#[test]
fn frame_grows_and_shrinks_within_its_buffer() {
    in_own_process("frame_grows_and_shrinks_within_its_buffer", || {
        on_one_worker(|all| {
            let mut frame = all.pool.alloc().unwrap();
            assert!(frame.is_empty() && frame.is_single_segment());
            assert_eq!((frame.headroom(), frame.tailroom()), (128, 2048));
            assert!(!frame.set_len(2049));
            assert!(!frame.set_len(70_000));
            assert!(frame.set_len(2048));
            frame.data_mut().fill(0xab);
            assert!(frame.set_len(100));
            assert!(frame.prepend(129).is_none());
            assert_eq!(frame.len(), 100);
            frame.prepend(128).unwrap().fill(1);
            assert_eq!((frame.len(), frame.headroom()), (228, 0));
            assert_eq!((frame.data()[127], frame.data()[128]), (1, 0xab));
            assert!(!frame.adj(229));
            assert!(frame.adj(228));
            assert!(frame.is_empty());
            assert_eq!(frame.checksums(), sluice_filters::RxChecksums::default());
        });
    });
}

#[test]
fn exhausted_pool_gives_no_frame_and_recovers() {
    in_own_process("exhausted_pool_gives_no_frame_and_recovers", || {
        on_one_worker(|all| {
            let mut held: Vec<Frame> = Vec::new();
            while let Some(frame) = all.pool.alloc() {
                held.push(frame);
            }
            assert!(held.len() > 8191 - 512, "{}", held.len());
            let mut free = FreeList::new();
            held.into_iter().for_each(|frame| free.push(frame));
            drop(free);
            assert!(all.pool.alloc().is_some());
        });
    });
}

/// Takes all frames of the pool, then lets five go one by one: they are in this thread's cache, and nothing is left behind it.
fn all_but_five(all: &mut WorkerQueues) -> Vec<Frame> {
    let mut held: Vec<Frame> = std::iter::from_fn(|| all.pool.alloc()).collect();
    (0..5).for_each(|_| drop(held.pop()));
    held
}

/// A failed allocation in bulk has copied pointers out of the cache before it fails.
#[test]
fn nearly_exhausted_pool_gives_each_frame_to_one_owner() {
    in_own_process("nearly_exhausted_pool_gives_each_frame_to_one_owner", || {
        on_one_worker(|all| {
            let held = all_but_five(all);
            let five: Vec<Frame> = (0..10).filter_map(|_| all.pool.alloc()).collect();
            let place = |frame: &Frame| frame.data().as_ptr();
            let distinct: HashSet<*const u8> = five.iter().chain(&held).map(place).collect();
            assert_eq!((five.len(), distinct.len()), (5, held.len() + 5));
        });
    });
}

/// `net_null` receives by allocating in bulk: without frames for a whole burst it returns none, and has written some.
#[test]
fn what_a_driver_wrote_beyond_its_count_is_not_received() {
    in_own_process("what_a_driver_wrote_beyond_its_count_is_not_received", || {
        on_one_worker(|all| {
            let held = all_but_five(all);
            let mut burst = Burst::new();
            assert_eq!(queues(all).0.burst(&mut burst), 0);
            assert!(
                (0..BURST).all(|i| burst.get(i).is_none() && burst.get_mut(i).is_none() && burst.take(i).is_none())
            );
            drop(burst);
            // Were they freed with the burst, they would be in the cache twice.
            let five: Vec<Frame> = std::iter::from_fn(|| all.pool.alloc()).collect();
            let distinct: HashSet<*const u8> = five.iter().map(|frame| frame.data().as_ptr()).collect();
            assert_eq!((five.len(), distinct.len()), (5, 5));
            drop(held);
        });
    });
}

#[test]
fn full_tx_buffer_hands_the_frame_back() {
    in_own_process("full_tx_buffer_hands_the_frame_back", || {
        on_one_worker(|all| {
            let mut buffer = TxBuffer::new();
            for _ in 0..TX_BUFFER {
                buffer.push(all.pool.alloc().unwrap()).unwrap();
            }
            assert!(buffer.is_full());
            assert!(buffer.push(all.pool.alloc().unwrap()).is_err());
        });
    });
}

/// A ring port that nobody empties takes frames until it is full.
#[test]
fn what_the_device_has_no_room_for_stays_in_the_buffer() {
    in_own_process("what_the_device_has_no_room_for_stays_in_the_buffer", || {
        let mut runtime = Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_ring0", "")])).unwrap();
        let (stopper, pool) = (runtime.stopper(), runtime.pool_monitors().remove(0));
        runtime
            .install(WorkerId(0), move |queues| Once {
                queues,
                body: Some(move |all: &mut WorkerQueues| {
                    let (mut sent, mut left) = (0, 0);
                    let mut buffer = TxBuffer::new();
                    while left == 0 {
                        while !buffer.is_full() {
                            let mut frame = all.pool.alloc().unwrap();
                            assert!(frame.set_len(60));
                            buffer.push(frame).unwrap();
                        }
                        let outcome = all.ports[0].tx.as_mut().unwrap().offer(&mut buffer);
                        assert_eq!(outcome.frames + outcome.left, TX_BUFFER);
                        assert_eq!(outcome.bytes, outcome.frames * 60);
                        assert_eq!(buffer.len(), outcome.left);
                        sent += outcome.frames;
                        left = outcome.left;
                    }
                    assert!(sent >= 1000, "{sent}");
                    assert_eq!(pool.usage().unwrap().in_use, sent + left);
                    // The ring comes back to the port itself: make room, and what waited goes out.
                    let mut burst = Burst::new();
                    let mut received = all.ports[0].rx.as_mut().unwrap().burst(&mut burst);
                    received += all.ports[0].rx.as_mut().unwrap().burst(&mut burst);
                    let outcome = all.ports[0].tx.as_mut().unwrap().offer(&mut buffer);
                    assert_eq!((outcome.frames, outcome.bytes, outcome.left), (left, left * 60, 0));
                    assert!(buffer.is_empty());
                    while all.ports[0].rx.as_mut().unwrap().burst(&mut burst) > 0 {
                        received += burst.len();
                    }
                    assert_eq!((received, pool.usage().unwrap().in_use), (sent + left, 0));
                    stopper.stop();
                }),
            })
            .unwrap();
        runtime.run(|_| true).unwrap();
    });
}

#[test]
fn frames_travel_between_workers() {
    in_own_process("frames_travel_between_workers", || {
        // One CPU for control, the other for both ends of the transfer: the second end is an ordinary thread.
        let (there, inbox) = mpsc::channel::<Transfer>();
        let (back, returned) = mpsc::channel::<Transfer>();
        let echo = std::thread::spawn(move || {
            for transfer in inbox {
                let mut frame = Frame::from(transfer);
                assert_eq!(frame.data(), [7; 60]);
                frame.data_mut().fill(9);
                back.send(frame.into()).unwrap();
            }
        });
        on_one_worker(move |all| {
            for _ in 0..1000 {
                let mut frame = all.pool.alloc().unwrap();
                assert!(frame.set_len(60));
                frame.data_mut().fill(7);
                there.send(frame.into()).unwrap();
            }
            drop(there);
            assert_eq!(returned.iter().inspect(|t| assert!(!format!("{t:?}").is_empty())).count(), 1000);
            echo.join().unwrap();
        });
    });
}

/// A frame that outlives the runtime is a leak, not a use after free.
#[test]
fn frame_held_beyond_the_end_stays_valid() {
    in_own_process("frame_held_beyond_the_end_stays_valid", || {
        let mut runtime = Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_null0", "")])).unwrap();
        let stopper = runtime.stopper();
        let (out, held) = mpsc::channel::<Transfer>();
        runtime
            .install(WorkerId(0), move |queues| Once {
                queues,
                body: Some(move |all: &mut WorkerQueues| {
                    let mut frame = all.pool.alloc().unwrap();
                    assert!(frame.set_len(60));
                    frame.data_mut().fill(5);
                    out.send(frame.into()).unwrap();
                    stopper.stop();
                }),
            })
            .unwrap();
        runtime.run(|_| true).unwrap();
        let frame = Frame::from(held.recv().unwrap());
        assert_eq!(frame.data(), [5; 60]);
    });
}

/// Two workers, one queue: both run, one has the queue, the other has none.
#[test]
fn device_with_one_queue_serves_two_workers() {
    in_own_process("device_with_one_queue_serves_two_workers", || {
        let file = std::env::temp_dir().join(format!("sluice-{}.pcap", std::process::id()));
        // A capture of nothing: the header alone (Ethernet link type).
        let mut header = 0xa1b2_c3d4_u32.to_le_bytes().to_vec();
        header.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
        header.extend([1, 0, 0, 0]);
        std::fs::write(&file, header).unwrap();
        let args = format!("rx_pcap={}", file.display());
        // The second worker shares the control thread's CPU.
        let config = appliance(&[1, 0], 0, vec![port("wan", "net_pcap0", &args)]);
        let workers = config.runtime.cores.len();
        let mut runtime = Runtime::build(&config).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!((runtime.ports()[0].rx_queues, runtime.rss(0)), (1, None));
        let (stopper, ran) = (runtime.stopper(), Arc::new(AtomicUsize::new(0)));
        for worker in 0..workers as u8 {
            let (stopper, ran) = (stopper.clone(), Arc::clone(&ran));
            runtime
                .install(WorkerId(worker), move |queues| Once {
                    queues,
                    body: Some(move |all: &mut WorkerQueues| {
                        assert_eq!(all.ports[0].rx.is_some(), worker == 0);
                        assert!(all.pool.alloc().is_some());
                        if ran.fetch_add(1, Ordering::SeqCst) + 1 == workers {
                            stopper.stop();
                        }
                    }),
                })
                .unwrap();
        }
        assert_eq!(
            runtime.install(WorkerId(9), |queues| Once { queues, body: Some(|_: &mut WorkerQueues| ()) }),
            Err(StartError::Worker(WorkerId(9)))
        );
        runtime.run(|_| true).unwrap();
        assert_eq!(ran.load(Ordering::SeqCst), workers);
    });
}

#[test]
fn port_is_described() {
    in_own_process("port_is_described", || {
        let mut config = appliance(&[1], 0, vec![port("wan", "net_null0", ""), port("lan", "net_null1", "")]);
        config.ports[1].mtu = 9000;
        let runtime = Runtime::build(&config).unwrap();
        let [wan, lan] = runtime.ports() else { panic!("two ports") };
        assert_eq!((wan.name.as_str(), wan.driver.as_str(), wan.mtu, lan.mtu), ("wan", "net_null", 1500, 9000));
        assert_eq!((wan.rx_queues, wan.tx_queues), (1, 1));
        assert!(wan.max_rx_queues > 1 && wan.link.up);
        assert_eq!(wan.mac_text().len(), 17);
        assert_eq!(runtime.port_monitors()[0].stats().unwrap().rx_errors, 0);
        let monitor = runtime.port_monitors().remove(0);
        drop(runtime);
        assert_eq!((monitor.stats(), monitor.link()), (None, None));
        assert!(!std::path::Path::new(&format!("/var/run/dpdk/sluice-{}", std::process::id())).exists());
    });
}

fn refused(ports: Vec<config::Port>) -> StartError {
    Runtime::build(&appliance(&[1], 0, ports)).map(|_| ()).unwrap_err()
}

#[test]
fn missing_interface_is_named() {
    in_own_process("missing_interface_is_named", || {
        let error = refused(vec![port("wan", "net_af_packet0", "iface=nosuch0")]);
        assert!(matches!(&error, StartError::InterfaceMissing { interface, .. } if interface == "nosuch0"), "{error}");
    });
}

#[test]
fn unknown_virtual_device_is_named() {
    in_own_process("unknown_virtual_device_is_named", || {
        let error = refused(vec![port("lan", "net_null0", ""), port("wan", "net_nosuch0", "")]);
        assert!(matches!(&error, StartError::UnknownDriver { device, .. } if device == "net_nosuch0"), "{error:?}");
    });
}

#[test]
fn bad_arguments_are_explained() {
    in_own_process("bad_arguments_are_explained", || {
        let error = refused(vec![port("wan", "net_null0", "nosuch=1")]);
        assert!(matches!(&error, StartError::Device { log, .. } if !log.0.is_empty()), "{error:?}");
        assert!(error.to_string().contains("nosuch"), "{error}");
    });
}

#[test]
fn missing_pci_device_is_named() {
    in_own_process("missing_pci_device_is_named", || {
        let error = refused(vec![port("wan", "0000:fe:1f.7", "")]);
        assert!(matches!(&error, StartError::PciMissing { device, .. } if device == "0000:fe:1f.7"), "{error}");
    });
}

#[test]
fn missing_cpu_is_named() {
    in_own_process("missing_cpu_is_named", || {
        let error = Runtime::build(&appliance(&[777], 0, vec![port("wan", "net_null0", "")])).map(|_| ()).unwrap_err();
        assert!(matches!(error, StartError::Cpu { key: "runtime.cores", cpu: 777, .. }), "{error}");
    });
}

#[test]
fn missing_hugepages_are_refused_when_required() {
    in_own_process("missing_hugepages_are_refused_when_required", || {
        let mut config = appliance(&[1], 0, vec![port("wan", "net_null0", "")]);
        config.runtime.hugepages = config::Hugepages::Require;
        config.runtime.mbufs = 4_194_303; // 10 GB, more than this machine's hugepages
        let error = Runtime::build(&config).map(|_| ()).unwrap_err();
        assert!(matches!(error, StartError::Hugepages { .. }), "{error}");
        assert!(error.to_string().contains("scripts/setup.sh"));
    });
}

#[test]
fn bad_dpdk_arguments_are_explained() {
    in_own_process("bad_dpdk_arguments_are_explained", || {
        let mut config = appliance(&[1], 0, vec![port("wan", "net_null0", "")]);
        config.runtime.dpdk_args = "--nonsense".into();
        let error = Runtime::build(&config).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("runtime.dpdk_args"), "{error}");
    });
}

#[test]
fn mtu_beyond_the_device_is_refused() {
    in_own_process("mtu_beyond_the_device_is_refused", || {
        let mut config = appliance(&[1], 0, vec![port("wan", "net_af_packet0", "iface=lo")]);
        config.ports[0].mtu = 9000;
        let error = Runtime::build(&config).map(|_| ()).unwrap_err();
        assert!(matches!(error, StartError::Mtu { mtu: 9000, max: 1500, .. }), "{error:?}");
    });
}

/// Counts turns until told to stop, and says that it finished.
struct Counting {
    _queues: WorkerQueues,
    turns: Arc<AtomicUsize>,
    finished: Arc<AtomicUsize>,
}

impl Turn for Counting {
    fn turn(&mut self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_micros(50));
    }

    fn finish(self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

fn kill_self(signal: &str) {
    assert!(Command::new("kill").args([signal, &std::process::id().to_string()]).status().unwrap().success());
}

fn counting() -> (Runtime, Arc<AtomicUsize>, Arc<AtomicUsize>, Stopper) {
    let mut runtime = Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_null0", "")])).unwrap();
    let (turns, finished) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (t, f, stopper) = (Arc::clone(&turns), Arc::clone(&finished), runtime.stopper());
    runtime.install(WorkerId(0), move |queues| Counting { _queues: queues, turns: t, finished: f }).unwrap();
    (runtime, turns, finished, stopper)
}

#[test]
fn each_signal_reaches_the_handler_and_only_a_true_answer_stops() {
    in_own_process("each_signal_reaches_the_handler_and_only_a_true_answer_stops", || {
        let (runtime, turns, finished, _) = counting();
        let (heard, hear) = mpsc::channel();
        let sender = std::thread::spawn(move || {
            while turns.load(Ordering::Relaxed) == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            let mut got = Vec::new();
            for signal in ["-HUP", "-INT", "-TERM", "-TERM"] {
                kill_self(signal);
                got.push(hear.recv_timeout(Duration::from_secs(5)).unwrap());
            }
            got
        });
        let terminations = AtomicUsize::new(0);
        runtime
            .run(move |signal| {
                heard.send(signal).unwrap();
                signal == Signal::Terminate && terminations.fetch_add(1, Ordering::SeqCst) == 1
            })
            .unwrap();
        use Signal::{Hangup, Interrupt, Terminate};
        assert_eq!(sender.join().unwrap(), [Hangup, Interrupt, Terminate, Terminate]);
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn signal_before_the_run_is_not_lost() {
    in_own_process("signal_before_the_run_is_not_lost", || {
        let (runtime, _, finished, _) = counting();
        kill_self("-TERM");
        let start = Instant::now();
        runtime.run(|signal| signal == Signal::Terminate).unwrap();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn stopper_ends_the_run_even_when_used_before_it() {
    in_own_process("stopper_ends_the_run_even_when_used_before_it", || {
        let (runtime, _, finished, stopper) = counting();
        stopper.stop();
        runtime.run(|_| false).unwrap();
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn of_two_threads_one_starts_dpdk() {
    in_own_process("of_two_threads_one_starts_dpdk", || {
        let start = Arc::new(Barrier::new(2));
        let build = |start: Arc<Barrier>| {
            start.wait();
            Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_null0", "")])).map(|_| ())
        };
        let threads = [(); 2].map(|()| {
            std::thread::spawn({
                let start = Arc::clone(&start);
                move || build(start)
            })
        });
        let mut results = threads.map(|thread| thread.join().unwrap());
        results.sort_by_key(Result::is_err);
        assert_eq!(results, [Ok(()), Err(StartError::Twice)]);
    });
}

/// Uses its queues and its pool in each turn, and tells so once asked.
struct Busy {
    queues: WorkerQueues,
    burst: Burst,
    asked: Arc<AtomicBool>,
    tell: mpsc::Sender<usize>,
}

impl Turn for Busy {
    fn turn(&mut self) {
        let received = queues(&mut self.queues).0.burst(&mut self.burst);
        let mut frame = self.queues.pool.alloc().unwrap();
        assert!(frame.set_len(60));
        frame.data_mut().fill(7);
        if self.asked.load(Ordering::Acquire) {
            let _ = self.tell.send(received);
        }
        std::thread::sleep(Duration::from_micros(50));
    }

    fn finish(self) {}
}

/// capsule listens for signals when the workers run already, and may find no file descriptors left for that.
#[test]
fn workers_of_a_failed_run_keep_what_they_run_on() {
    in_own_process("workers_of_a_failed_run_keep_what_they_run_on", || {
        let mut runtime = Runtime::build(&appliance(&[1], 0, vec![port("wan", "net_null0", "")])).unwrap();
        let (asked, (tell, told)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let (ask, monitor) = (Arc::clone(&asked), runtime.port_monitors().remove(0));
        runtime.install(WorkerId(0), move |queues| Busy { queues, burst: Burst::new(), asked, tell }).unwrap();
        let mut files: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        // Two for the socket pair, without which capsule panics, and not enough for all of its three signals.
        files.truncate(files.len() - 3);
        let error = runtime.run(|_| true).unwrap_err();
        drop(files);
        assert!(matches!(&error, StartError::Run { reason } if reason.contains("open files")), "{error}");
        assert_eq!(monitor.stats(), None);
        assert!(!std::path::Path::new(&format!("/var/run/dpdk/sluice-{}", std::process::id())).exists());
        ask.store(true, Ordering::Release);
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(BURST));
    });
}

#[test]
fn a_panic_past_running_workers_aborts() {
    let ended = alone("a_panic_past_running_workers_aborts", || {
        let (runtime, ..) = counting();
        kill_self("-TERM");
        let _ = runtime.run(|_| panic!("in the handler"));
    });
    let Some((status, _, stderr)) = ended else { return };
    assert!(stderr.contains("in the handler"), "{stderr}");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{status}");
}
