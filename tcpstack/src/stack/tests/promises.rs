//! What SYN-ACKs promise, and that it is kept: over epochs, workers, restarts, and whatever a forger says.

use proptest::prelude::*;
use sluice_filters::Flags;
use sluice_filters::icmp::{IcmpError, IcmpKind, Unreachable};
use sluice_filters::testkit::{Opt, tcp};
use sluice_filters::units::Seq;

use super::super::*;
use super::lab::*;
use super::spliced_by_hand::*;
use crate::counters::{DialFailure, Missing, ProbeResult};
use crate::net::Reach;
use crate::splice::promise::Accepted;

const EPOCH: u64 = 64;
const LEARNING: &str = "mode = \"splice\"";
const UNASKED: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";
const ALL: Accepted =
    Accepted { mss: 1_460, window: 60_000, wscale: Some(Some(7)), sack: Some(true), timestamps: Some(true) };
/// A port that no upstream's route points to.
const WAN: PortId = PortId(1);

/// Another worker of the same appliance, or another appliance with the same seed.
fn stack_like(lab: &Lab, id: u8, shared: &Arc<Shared>, config: Config) -> Stack {
    let config = Arc::new(config);
    Stack::new(Setup {
        filters: Engine::of(&config).unwrap(),
        jar: Jar::new([7; 32], config.cookies.epoch),
        worker: WorkerId(id),
        counters: Arc::new(StackCounters::new(&config)),
        shared: shared.clone(),
        entropy: [id; 48],
        mtus: vec![1500],
        now: lab.now,
        config,
    })
}

fn another_worker(lab: &Lab) -> Stack {
    stack_like(lab, 1, &lab.shared, Config::clone(&lab.stack.config))
}

/// What the SYN-ACK for a client from `port` says, and its cookie.
fn syn_from(lab: &mut Lab, port: u16) -> (Segment, sluice_filters::TcpOptions) {
    let options = [Opt::Mss(1460), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(3)];
    let from = format!("203.0.113.99:{port}");
    lab.receive(&tcp(&*from, SERVICE).flags(Flags::SYN).seq(ISN).options(options).build());
    read(&lab.below.sent.pop_back().unwrap().1)
}

fn turn_to(lab: &mut Lab, epoch: u64) {
    let wall = Duration::from_secs(epoch * EPOCH + 1);
    lab.stack.begin_turn(lab.now, wall);
}

fn by_hand(extra: &str) -> Lab {
    let mut lab = Lab::new(extra);
    lab.client_answers = false;
    lab.server_answers = false;
    turn_to(&mut lab, 10);
    lab
}

/// The SYN of a probe that was just sent.
fn probe_syn(lab: &mut Lab) -> Option<(Segment, sluice_filters::TcpOptions)> {
    lab.stack.probe(lab.now, &mut lab.below);
    let sent: Vec<_> = lab.below.sent.drain(..).collect();
    sent.iter().map(|(_, packet)| read(packet)).rfind(|(segment, _)| segment.flags == Flags::SYN)
}

fn answer(syn: &Segment, options: &[Opt]) -> Vec<u8> {
    tcp(UPSTREAM, &*syn.key.remote().to_string())
        .flags(Flags::SYN | Flags::ACK)
        .seq(THEIR_ISN)
        .ack(syn.seq.0.wrapping_add(1))
        .window(60_000)
        .options(options)
        .build()
}

/// Every option, echoing the probe's timestamp.
fn stamped(options: &sluice_filters::TcpOptions, mss: u16, scale: u8) -> [Opt; 5] {
    let stamp = options.timestamp.unwrap().0;
    [Opt::Mss(mss), Opt::SackPermitted, Opt::Timestamp(THEIR_CLOCK, stamp), Opt::Nop, Opt::WindowScale(scale)]
}

fn probes(lab: &Lab, result: ProbeResult) -> u64 {
    lab.counters.services[0].probes[0][result as usize].get()
}

fn fallbacks(lab: &Lab, missing: Missing) -> u64 {
    lab.counters.services[0].fallbacks[missing as usize].get()
}

/// What the SYN-ACK with this cookie promised.
fn promised(stack: &Stack, cookie: Seq) -> Option<SynOffers> {
    let (minting, other) = stack.jar.epochs();
    let odd = u64::from(cookie.0 >> 31);
    stack.promised(ServiceId(0), if minting & 1 == odd { minting } else { other })
}

#[test]
fn what_is_learned_changes_the_next_epochs_promise_and_a_scale_may_shrink() {
    let mut lab = by_hand(UNASKED);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(9)), ..ALL });
    assert_eq!(syn_from(&mut lab, 5_000).1.wscale, Some(9), "nobody had been promised anything");
    lab.shared.board.learn(ServiceId(0), 0, Accepted { mss: 1_400, wscale: Some(Some(5)), ..ALL });
    lab.stack.publish(lab.now);
    let (answer, options) = syn_from(&mut lab, 5_001);
    assert_eq!((options.mss, options.wscale, answer.window), (Some(1_460), Some(9), 60_000));
    turn_to(&mut lab, 11);
    let (_, options) = syn_from(&mut lab, 5_002);
    assert_eq!((options.mss, options.wscale), (Some(1_400), Some(5)));
}

#[test]
fn the_acks_epoch_tells_which_scale_its_client_was_promised() {
    let mut lab = by_hand(UNASKED);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(9)), ..ALL });
    let (answer, options) = syn_from(&mut lab, 5_000);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(5)), ..ALL });
    turn_to(&mut lab, 11);
    assert_eq!(syn_from(&mut lab, 5_001).1.wscale, Some(5));
    let our_stamp = options.timestamp.unwrap().0;
    let mut talk = Talk { lab, cookie: answer.seq.0, our_stamp, ours: String::new(), dial: 0 };
    talk.client(Flags::ACK, 0, 0, b"");
    talk.find_dial();
    talk.accept(&all());
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, b"");
    // The upstream counts in units of 128, its client in those of 512.
    assert_eq!(talk.one().1.window, 500 >> 2);
    assert_eq!(fallbacks(&talk.lab, Missing::WindowScale), 0);
}

#[test]
fn all_workers_promise_alike_whoever_is_asked_first() {
    let mut lab = by_hand(UNASKED);
    let mut other = another_worker(&lab);
    let wall = Duration::from_secs(10 * EPOCH + 1);
    other.begin_turn(lab.now, wall);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(9)), ..ALL });
    let cookie = syn_from(&mut lab, 5_000).0.seq;
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(2)), ..ALL });
    assert_eq!(promised(&other, cookie).unwrap().wscale, Some(9));
    // The other one turns first, and its turn is the first that needs the next promise.
    other.begin_turn(lab.now, Duration::from_secs(11 * EPOCH));
    let late = Seq(cookie.0 ^ 1 << 31);
    assert_eq!(promised(&other, late).unwrap().wscale, Some(2));
    assert_eq!(promised(&other, cookie).unwrap().wscale, Some(9), "the epoch before");
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(4)), ..ALL });
    assert_eq!(syn_from(&mut lab, 5_001).1.wscale, Some(9), "this one has not turned");
    turn_to(&mut lab, 11);
    assert_eq!(syn_from(&mut lab, 5_002).1.wscale, Some(2));
}

#[test]
fn a_sibling_that_is_ahead_and_the_epoch_it_is_in_have_one_promise() {
    let mut lab = by_hand(UNASKED);
    let cookie = syn_from(&mut lab, 5_000).0.seq;
    // The last eighth: cookies of the next epoch are a sibling's whose clock runs ahead.
    lab.stack.begin_turn(lab.now, Duration::from_secs(11 * EPOCH - 2));
    let ahead = Seq(cookie.0 ^ 1 << 31);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(6)), ..ALL });
    assert_eq!(promised(&lab.stack, ahead).unwrap().wscale, Some(6));
    assert_eq!(promised(&lab.stack, cookie).unwrap().wscale, Some(7));
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(3)), ..ALL });
    turn_to(&mut lab, 11);
    assert_eq!(syn_from(&mut lab, 5_001).1.wscale, Some(6));
}

#[test]
fn a_restart_takes_its_predecessors_cookies_at_what_it_would_have_promised() {
    let mut lab = by_hand(UNASKED);
    lab.shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(9)), ..ALL });
    let (answer, _) = syn_from(&mut lab, 5_000);
    // The same seed, nothing remembered; the first probe has been answered when the ACK comes.
    let shared = Arc::new(Shared::new(&lab.stack.config, [1, 2], 16, keys()));
    let mut next = stack_like(&lab, 0, &shared, Config::clone(&lab.stack.config));
    next.begin_turn(lab.now, Duration::from_secs(10 * EPOCH + 2));
    shared.board.learn(ServiceId(0), 0, Accepted { wscale: Some(Some(9)), ..ALL });
    assert_eq!(promised(&next, answer.seq).unwrap().wscale, Some(9));
    // Pinned values need no luck.
    let pinned = Lab::new(PINNED);
    let shared = Arc::new(Shared::new(&pinned.stack.config, [1, 2], 16, keys()));
    let mut next = stack_like(&lab, 0, &shared, Config::clone(&pinned.stack.config));
    next.begin_turn(lab.now, Duration::from_secs(10 * EPOCH + 2));
    assert_eq!(promised(&next, answer.seq).unwrap().wscale, Some(7));
}

#[test]
fn first_clients_of_an_upstream_that_is_down_are_promised_scale_sack_and_timestamps() {
    let mut lab = by_hand(LEARNING);
    for _ in 0..3 {
        assert!(probe_syn(&mut lab).is_some());
        lab.now.0 += 301_000;
    }
    assert_eq!(probe_syn(&mut lab), None);
    assert_eq!(probes(&lab, ProbeResult::Silent), 1);
    let (answer, options) = syn_from(&mut lab, 5_000);
    assert_eq!((options.mss, options.wscale, options.sack_permitted), (Some(1_460), Some(7), true));
    assert!(options.timestamp.is_some() && answer.window == 8_192);
}

#[test]
fn a_terminated_services_promise_is_of_its_epoch_too() {
    let mut lab = by_hand("buffer = \"32KiB\"");
    let (answer, options) = syn_from(&mut lab, 5_000);
    assert_eq!((answer.window, options.wscale), (32_768, Some(0)));
    // What a reload will be: the same appliance with a smaller buffer.
    let config = Config::clone(&Lab::new("buffer = \"4KiB\"").stack.config);
    lab.stack = stack_like(&lab, 0, &lab.shared, config);
    turn_to(&mut lab, 10);
    assert_eq!(syn_from(&mut lab, 5_001).0.window, 32_768);
    turn_to(&mut lab, 11);
    assert_eq!(syn_from(&mut lab, 5_002).0.window, 4_096);
}

/// The client fills the window it was promised, and closes. Its FIN has to wait where the window is full, so it is repeated.
fn fills_the_window(mut talk: Talk, window: u16) {
    let server = talk.lab.server.listen(80);
    let payload = bytes(usize::from(window));
    for (number, chunk) in payload.chunks(500).enumerate() {
        talk.client(Flags::ACK, number as u32 * 500, 0, chunk);
    }
    talk.lab.server_answers = true;
    let mut got = Vec::new();
    let ended = (0..20).any(|_| {
        talk.client(Flags::ACK | Flags::FIN, u32::from(window), 0, b"");
        talk.lab.run(200, |lab| {
            lab.server.read(server, &mut got);
            !got.is_empty() && !lab.server.get(server).may_recv()
        })
    });
    assert!(ended, "no FIN");
    assert_eq!(got.len(), payload.len(), "of a window of {window}, then FIN");
    assert!(got == payload);
}

fn promised_window(lab: &mut Lab, mss: u16) -> Talk {
    let options = [Opt::Mss(mss), Opt::SackPermitted, Opt::Timestamp(500, 0), Opt::Nop, Opt::WindowScale(3)];
    lab.receive(&tcp(HAND, SERVICE).flags(Flags::SYN).seq(ISN).options(options).build());
    let (answer, options) = read(&lab.below.sent.pop_back().unwrap().1);
    let lab = std::mem::replace(lab, Lab::new(UNASKED));
    Talk { lab, cookie: answer.seq.0, our_stamp: options.timestamp.unwrap().0, ours: String::new(), dial: 0 }
}

#[test]
fn a_client_may_fill_the_window_it_was_promised_though_its_session_falls_back() {
    for buffer in ["4KiB", "16KiB"] {
        let mut lab = by_hand(&format!("{UNASKED}\nbuffer = \"{buffer}\""));
        lab.shared.board.learn(ServiceId(0), 0, ALL);
        let window = {
            let (answer, _) = syn_from(&mut lab, 6_000);
            answer.window
        };
        let mut talk = promised_window(&mut lab, 1_460);
        talk.client(Flags::ACK, 0, 0, b"");
        talk.find_dial();
        talk.accept(&[Opt::Mss(1460)]);
        assert_eq!(fallbacks(&talk.lab, Missing::WindowScale), 1);
        fills_the_window(talk, window);
    }
}

#[test]
fn a_client_with_a_small_mss_may_fill_the_window_it_was_promised() {
    let mut lab = by_hand(&format!("{UNASKED}\nbuffer = \"4KiB\""));
    lab.shared.board.learn(ServiceId(0), 0, ALL);
    let window = syn_from(&mut lab, 6_000).0.window;
    let mut talk = promised_window(&mut lab, 500);
    talk.client(Flags::ACK, 0, 0, b"");
    assert_eq!(fallbacks(&talk.lab, Missing::Mss), 1);
    fills_the_window(talk, window);
}

#[test]
fn a_window_promised_before_the_buffer_shrank_is_held() {
    let mut lab = by_hand(&format!("{UNASKED}\nbuffer = \"32KiB\""));
    lab.shared.board.learn(ServiceId(0), 0, Accepted { window: 20_000, ..ALL });
    assert_eq!(syn_from(&mut lab, 6_000).0.window, 20_000);
    let config = Config::clone(&Lab::new(&format!("{UNASKED}\nbuffer = \"4KiB\"")).stack.config);
    lab.counters = Arc::new(StackCounters::new(&config));
    lab.stack = stack_like(&lab, 0, &lab.shared, config);
    turn_to(&mut lab, 10);
    let mut talk = promised_window(&mut lab, 500);
    talk.client(Flags::ACK, 0, 0, b"");
    fills_the_window(talk, 20_000);
}

#[test]
fn a_sweep_of_forged_answers_from_the_clients_side_is_nobodys_answer() {
    let mut talk = Talk::new(PINNED);
    talk.lab.port = WAN;
    talk.accept(&[Opt::Mss(1)]);
    assert_eq!(talk.dropped(), Some(DropReason::WrongPort));
    let reset = tcp(UPSTREAM, &*talk.ours).flags(Flags::RST | Flags::ACK).ack(talk.dial.wrapping_add(1)).build();
    talk.lab.receive(&reset);
    assert_eq!(talk.dropped(), Some(DropReason::WrongPort));
    assert_eq!(unreachable(&mut talk, WAN), Err(DropReason::WrongPort));
    assert!(talk.sent().is_empty());
    // Nor is it heard later.
    talk.lab.port = PortId(0);
    talk.accept(&all());
    talk.sent();
    talk.lab.port = WAN;
    talk.upstream(Flags::ACK, 0, 0, b"forged");
    assert_eq!(talk.dropped(), Some(DropReason::WrongPort));
    assert!(talk.sent().is_empty());
    talk.lab.port = PortId(0);
    talk.upstream(Flags::ACK, 0, 0, b"true");
    assert_eq!(talk.one().3, b"true");
}

fn unreachable(talk: &mut Talk, port: PortId) -> Result<(), DropReason> {
    let key = flow(UPSTREAM, &talk.ours);
    let kind = IcmpKind::Unreachable(Unreachable::Host);
    let error = IcmpError { kind, key, seq: Seq(talk.dial), len: 60 };
    let hash = talk.lab.stack.hash(&key);
    talk.lab.stack.icmp_error(&error, hash, port, talk.lab.now, &mut talk.lab.below)
}

#[test]
fn an_upstreams_leg_of_terminate_mode_is_heard_on_its_own_port_only() {
    let (mut lab, _, server) = with_hand();
    lab.server.get(server).send_slice(b"forged").unwrap();
    lab.port = WAN;
    lab.idle(20);
    assert!(lab.drops.contains(&DropReason::WrongPort), "{:?}", lab.drops);
    assert!(lab.client.wire.incoming.is_empty());
    lab.port = PortId(0);
    assert!(lab.run(3_000, |lab| lab.client.wire.incoming.iter().any(|packet| packet.ends_with(b"forged"))));
}

/// On a port with both sides a forger may guess our source port. What it then says is for its own connection.
#[test]
fn an_answer_to_a_dial_teaches_nothing_that_other_clients_are_told() {
    let mut talk = Talk::new(UNASKED);
    talk.accept(&[Opt::Mss(1), Opt::WindowScale(14)]);
    assert_eq!(fallbacks(&talk.lab, Missing::Mss), 1);
    for epoch in [0, 1, 2] {
        turn_to(&mut talk.lab, epoch);
        talk.lab.stack.publish(talk.lab.now);
        let (answer, options) = syn_from(&mut talk.lab, 6_000);
        assert_eq!((options.mss, options.wscale, answer.window), (Some(1_460), Some(7), 8_192), "epoch {epoch}");
    }
}

#[test]
fn a_refused_dial_shuns_no_upstream_for_others_and_an_unanswered_one_does() {
    for (silent, first_again) in [(false, true), (true, false)] {
        let mut lab =
            Lab::with(&format!("{UNASKED}\n[service.timeouts]\nconnect = \"1s\""), &[UPSTREAM, "10.0.0.6:80"]);
        lab.client_answers = false;
        lab.server_answers = false;
        turn_to(&mut lab, 0);
        let mut dialled = Vec::new();
        for client in 0..4 {
            let (answer, options) = syn_from(&mut lab, 7_000 + client);
            let from = format!("203.0.113.99:{}", 7_000 + client);
            let stamp = Opt::Timestamp(510, options.timestamp.unwrap().0);
            let ack = tcp(&*from, SERVICE).flags(Flags::ACK).seq(ISN.wrapping_add(1)).ack(answer.seq.0.wrapping_add(1));
            lab.receive(&ack.window(2_000).options([Opt::Nop, Opt::Nop, stamp]).build());
            let (syn, _) = read(&lab.below.sent.pop_back().unwrap().1);
            assert_eq!(syn.flags, Flags::SYN);
            dialled.push(syn.key.dst);
            // The first upstream fails its dials, by a word of its own or by none.
            if syn.key.dst == std::net::IpAddr::from([10, 0, 0, 5]).into() {
                if silent {
                    for _ in 0..1_100 {
                        lab.now.0 += 1_000;
                        lab.stack.begin_turn(lab.now, Duration::from_secs(1));
                        lab.stack.run_timers(lab.now, 256, &mut lab.below);
                    }
                } else {
                    let reset = tcp(UPSTREAM, &*syn.key.local_of_reversed())
                        .flags(Flags::RST | Flags::ACK)
                        .ack(syn.seq.0.wrapping_add(1));
                    lab.receive(&reset.build());
                }
                let failure = if silent { DialFailure::Timeout } else { DialFailure::Refused };
                assert!(lab.counters.services[0].dial_failures[0][failure as usize].get() > 0);
            }
            lab.below.sent.clear();
        }
        let first = std::net::IpAddr::from([10, 0, 0, 5]).into();
        let again = dialled.iter().filter(|address| **address == first).count() > 1;
        assert_eq!(again, first_again, "silent {silent}: {dialled:?}");
    }
}

#[test]
fn a_dial_that_finds_less_has_a_probe_sent_at_once_and_no_more_than_one_a_second() {
    let mut lab = by_hand(LEARNING);
    let (syn, options) = probe_syn(&mut lab).expect("the first probe");
    lab.receive(&answer(&syn, &stamped(&options, 1_460, 7)));
    assert_eq!(probes(&lab, ProbeResult::Answered), 1);
    let begun = lab.now;
    let mut answered = 1;
    for client in 0..30_u16 {
        lab.now.0 += 100_000;
        let wall = Duration::from_secs(10 * EPOCH + 1);
        lab.stack.begin_turn(lab.now, wall);
        // On any worker.
        lab.shared.board.want_probe(ServiceId(0), 0);
        if let Some((syn, options)) = probe_syn(&mut lab) {
            answered += 1;
            let since = lab.now.since(begun);
            assert!(since >= Duration::from_secs(answered - 1), "probe {answered} after {since:?}");
            lab.receive(&answer(&syn, &stamped(&options, 1_400 + client, 7)));
        }
    }
    assert!(answered >= 3, "{answered} in three seconds");
    assert_eq!(probes(&lab, ProbeResult::Answered), answered);
    turn_to(&mut lab, 11);
    assert!(syn_from(&mut lab, 5_000).1.mss.unwrap() < 1_460);
}

#[test]
fn however_many_upstreams_there_are_few_are_asked_in_one_turn_and_all_in_the_end() {
    let upstreams: Vec<String> = (1..=100).map(|host| format!("10.0.1.{host}:80")).collect();
    let mut lab = Lab::with(LEARNING, &upstreams.iter().map(String::as_str).collect::<Vec<_>>());
    (lab.client_answers, lab.server_answers) = (false, false);
    turn_to(&mut lab, 10);
    let mut asked = std::collections::HashSet::new();
    for _ in 0..13 {
        lab.stack.probe(lab.now, &mut lab.below);
        let sent: Vec<_> = lab.below.sent.drain(..).map(|(_, packet)| read(&packet).0.key.dst).collect();
        assert!(sent.len() <= 8, "{}", sent.len());
        asked.extend(sent);
    }
    assert_eq!(asked.len(), 100);
}

#[test]
fn a_probe_that_was_wanted_is_repeated_every_second_until_it_is_answered() {
    let mut lab = by_hand("mode = \"splice\"\npromise = { probe = \"1h\" }");
    let (syn, options) = probe_syn(&mut lab).expect("the first probe");
    lab.receive(&answer(&syn, &stamped(&options, 1_460, 7)));
    lab.receive(&answer(&syn, &stamped(&options, 1_460, 7)));
    lab.now.0 += 5_000_000;
    assert_eq!(probe_syn(&mut lab), None);
    lab.shared.board.want_probe(ServiceId(0), 0);
    for _ in 0..3 {
        let (syn, _) = probe_syn(&mut lab).expect("a probe");
        let ours = syn.key.remote().to_string();
        lab.receive(&tcp(UPSTREAM, &*ours).flags(Flags::RST | Flags::ACK).ack(syn.seq.0.wrapping_add(1)).build());
        lab.now.0 += 999_000;
        assert_eq!(probe_syn(&mut lab), None);
        lab.now.0 += 2_000;
    }
    let (syn, options) = probe_syn(&mut lab).expect("a probe");
    lab.receive(&answer(&syn, &stamped(&options, 1_400, 7)));
    assert_eq!((probes(&lab, ProbeResult::Refused), probes(&lab, ProbeResult::Answered)), (3, 2));
    lab.receive(&answer(&syn, &stamped(&options, 1_400, 7)));
    lab.now.0 += 60_000_000;
    assert_eq!(probe_syn(&mut lab), None);
}

#[test]
fn a_fallback_wants_a_probe() {
    let mut talk = Talk::new(LEARNING);
    assert!(probe_syn(&mut talk.lab).is_some());
    assert_eq!(talk.lab.shared.board.wish(), None);
    talk.accept(&[Opt::Mss(1460)]);
    assert_eq!(fallbacks(&talk.lab, Missing::WindowScale), 1);
    assert_eq!(talk.lab.shared.board.wish(), Some((ServiceId(0), 0)));
}

#[test]
fn only_who_knows_a_probes_numbers_answers_it() {
    let mut lab = by_hand(LEARNING);
    let (syn, options) = probe_syn(&mut lab).expect("a probe");
    let stamp = options.timestamp.unwrap().0;
    let right = stamped(&options, 700, 3);
    let mut forged = answer(&syn, &right);
    lab.port = WAN;
    lab.receive(&forged);
    assert_eq!(lab.drops.pop(), Some(DropReason::WrongPort));
    lab.port = PortId(0);
    forged = answer(&Segment { seq: syn.seq.plus(1), ..syn }, &right);
    lab.receive(&forged);
    assert_eq!(lab.drops.pop(), Some(DropReason::BadAck));
    let [mss, sack, _, nop, scale] = right.clone();
    forged = answer(&syn, &[mss, sack, Opt::Timestamp(THEIR_CLOCK, stamp.wrapping_add(1)), nop, scale]);
    lab.receive(&forged);
    assert_eq!(lab.drops.pop(), Some(DropReason::BadAck));
    let ours = syn.key.remote().to_string();
    lab.receive(&tcp(UPSTREAM, &*ours).flags(Flags::RST | Flags::ACK).ack(syn.seq.0).build());
    assert_eq!(lab.drops.pop(), Some(DropReason::BadAck));
    assert_eq!(ProbeResult::ALL.map(|result| probes(&lab, result)), [0, 0, 0]);
    lab.receive(&answer(&syn, &right));
    assert_eq!((lab.drops.pop(), probes(&lab, ProbeResult::Answered)), (None, 1));
}

/// The first number of a probe says nothing about the next one's.
#[test]
fn probes_begin_anew_with_another_port_number_and_timestamp() {
    let mut lab = by_hand("mode = \"splice\"\npromise = { probe = \"1s\" }");
    let mut seen: Vec<(u16, u32, u32)> = Vec::new();
    while seen.len() < 4 {
        if let Some((syn, options)) = probe_syn(&mut lab)
            && seen.last().is_none_or(|(port, ..)| *port != syn.key.src_port)
        {
            seen.push((syn.key.src_port, syn.seq.0, options.timestamp.unwrap().0));
        }
        lab.now.0 += 301_000;
        lab.stack.begin_turn(lab.now, Duration::from_secs(640));
    }
    for pair in seen.windows(2) {
        let ([before, after], _) = pair.split_first_chunk::<2>().unwrap();
        assert_ne!(before.0, after.0);
        assert!(after.1.wrapping_sub(before.1) > 1 << 20 || before.1.wrapping_sub(after.1) > 1 << 20, "{seen:?}");
        assert!(after.2.wrapping_sub(before.2) > 1 << 16, "{seen:?}");
    }
}

#[test]
fn an_mss_that_fell_by_a_message_of_our_own_is_no_fallback() {
    let pinned = "promise = { probe = \"0s\", mss = 1460, window_scale = 7, sack = true, timestamps = true }";
    let mut talk = Talk::connected(&format!("mode = \"splice\"\n{pinned}"));
    talk.sent();
    talk.upstream(Flags::ACK, 0, 0, &[b'd'; 1_400]);
    let seq = talk.one().1.seq;
    let key = flow(HAND, SERVICE);
    let error = IcmpError { kind: IcmpKind::TooBig(1_300), key, seq, len: 1_452 };
    let hash = talk.lab.stack.hash(&key);
    talk.lab.stack.icmp_error(&error, hash, PortId(0), talk.lab.now, &mut talk.lab.below).unwrap();
    talk.lab.below.sent.clear();
    // The next connection's SYN-ACK, as Linux makes it while it remembers; and one that is smaller still.
    for (port, mss, fallen) in [(5_100, 1_260, 0), (5_101, 1_259, 1)] {
        let (answer, options) = syn_from(&mut talk.lab, port);
        let from = format!("203.0.113.99:{port}");
        let stamp = Opt::Timestamp(510, options.timestamp.unwrap().0);
        let ack = tcp(&*from, SERVICE).flags(Flags::ACK).seq(ISN.wrapping_add(1)).ack(answer.seq.0.wrapping_add(1));
        talk.lab.receive(&ack.window(2_000).options([Opt::Nop, Opt::Nop, stamp]).build());
        talk.find_dial();
        let [_, rest @ ..] = all();
        let options: Vec<Opt> = std::iter::once(Opt::Mss(mss)).chain(rest).collect();
        talk.accept(&options);
        assert_eq!(fallbacks(&talk.lab, Missing::Mss), fallen, "MSS {mss}");
    }
}

#[test]
fn probes_do_not_take_our_own_message_for_a_smaller_upstream() {
    let mut lab = by_hand("mode = \"splice\"\npromise = { probe = \"1s\" }");
    lab.shared.board.learn(ServiceId(0), 0, ALL);
    lab.shared.board.tell(std::net::IpAddr::from([10, 0, 0, 5]).into(), 1_300, lab.now);
    let (syn, options) = probe_syn(&mut lab).expect("a probe");
    lab.receive(&answer(&syn, &stamped(&options, 1_260, 7)));
    assert_eq!(lab.shared.board.note(ServiceId(0), 0).unwrap().mss, 1_460);
    lab.receive(&answer(&syn, &stamped(&options, 1_260, 7)));
    lab.now.0 += 1_100_000;
    lab.stack.begin_turn(lab.now, Duration::from_secs(10 * EPOCH + 1));
    let (syn, options) = probe_syn(&mut lab).expect("the next one");
    lab.receive(&answer(&syn, &stamped(&options, 1_200, 7)));
    assert_eq!(lab.shared.board.note(ServiceId(0), 0).unwrap().mss, 1_200);
}

/// What a dial sends when a far client's upstream has accepted: the kinds of segments, and whether they have timestamps.
fn last_words(talk: &mut Talk) -> Vec<(Flags, bool)> {
    talk.sent();
    talk.accept(&all());
    talk.sent().iter().map(|(_, segment, options, _)| (segment.flags, options.timestamp.is_some())).collect()
}

fn far(extra: &str) -> Talk {
    let mut talk = Talk::shaken(extra);
    talk.wait_ms(40);
    talk.client(Flags::ACK, 0, 0, b"");
    talk.find_dial();
    talk
}

#[test]
fn the_last_ack_has_a_timestamp_where_the_upstream_keeps_nothing_of_a_syn() {
    let twice = [(Flags::SYN, true), (Flags::ACK, false)];
    assert_eq!(last_words(&mut far(PINNED)), twice);
    let mut talk = far(PINNED);
    talk.lab.shared.board.learn_forgets(ServiceId(0), 0, true);
    assert_eq!(last_words(&mut talk), [(Flags::ACK, true)]);
    talk.lab.shared.board.learn_forgets(ServiceId(0), 0, false);
    assert_eq!(last_words(&mut far(PINNED)), twice);
}

#[test]
fn the_last_ack_has_a_timestamp_just_after_a_syn_was_left_unanswered() {
    let mut talk = far(PINNED);
    talk.wait_ms(250);
    assert_eq!(last_words(&mut talk), [(Flags::ACK, true)]);
    // One whose next hop was not known yet was not asked.
    let mut talk = Talk::shaken(PINNED);
    talk.lab.below.reach = Reach::Resolving;
    talk.wait_ms(40);
    talk.client(Flags::ACK, 0, 0, b"");
    talk.find_dial();
    talk.wait_ms(250);
    talk.lab.below.reach = Reach::Known;
    assert_eq!(last_words(&mut talk).len(), 2);
}

#[test]
fn an_upstream_that_does_not_repeat_its_answer_answers_with_cookies() {
    for repeats in [true, false] {
        let mut lab = by_hand("mode = \"splice\"\npromise = { probe = \"1s\" }");
        lab.shared.board.learn_forgets(ServiceId(0), 0, repeats);
        let (syn, options) = probe_syn(&mut lab).expect("a probe");
        let accepted = answer(&syn, &stamped(&options, 1_460, 7));
        lab.receive(&accepted);
        assert!(lab.below.sent.is_empty(), "it waits");
        lab.now.0 += 1_000_000;
        if repeats {
            lab.receive(&accepted);
        } else {
            lab.stack.probe(lab.now, &mut lab.below);
            assert!(lab.below.sent.is_empty(), "it waits longer");
            lab.now.0 += 2_300_000;
            lab.stack.probe(lab.now, &mut lab.below);
        }
        let (reset, _) = read(&lab.below.sent.pop_front().expect("a RST").1);
        assert_eq!((reset.flags, reset.seq), (Flags::RST, syn.seq.plus(1)));
        assert_eq!(lab.shared.board.may_forget(ServiceId(0), 0, lab.now), !repeats);
        assert_eq!(lab.counters.services[0].syn_cookies[0].get(), u64::from(!repeats));
        assert_eq!(ProbeResult::ALL.map(|result| probes(&lab, result)), [1, 0, 0]);
        lab.stack.publish(lab.now);
        assert_eq!(lab.counters.flow_entries.get(), 0);
    }
}

/// A step of the appliance's life.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The wall clock goes by so many eighths of an epoch, or back.
    Wall(i64),
    /// A probe finds so much.
    Learn { mss: u16, window: u16, scale: u8 },
    /// A worker answers a SYN.
    Syn { worker: usize },
    /// A worker gets an ACK with a cookie that was given out.
    Ack { worker: usize, which: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (-12_i64..20).prop_map(Step::Wall),
        2 => (536_u16..1_460, 536_u16..65_535, 0_u8..15).prop_map(|(mss, window, scale)| Step::Learn { mss, window, scale }),
        4 => (0_usize..3).prop_map(|worker| Step::Syn { worker }),
        6 => (0_usize..3, 0_usize..1_000).prop_map(|(worker, which)| Step::Ack { worker, which }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is learned, whichever worker answers and whichever checks, wherever the clock goes within a quarter of an hour: a
    /// cookie that is still good stands for what its SYN-ACK said.
    #[test]
    fn a_good_cookie_stands_for_what_its_syn_ack_said(steps in steps()) {
        let mut lab = by_hand(&format!("{UNASKED}\n[service.limits]\nconnections = 16"));
        let mut others = [another_worker(&lab), another_worker(&lab)];
        let eighth = EPOCH / 8;
        let mut at: i64 = 1_000 * 8;
        let mut said: Vec<(FlowKey, Seq, SynOffers)> = Vec::new();
        for step in steps {
            let wall = Duration::from_secs(at as u64 * eighth + 1);
            match step {
                Step::Wall(by) => at = (at + by).clamp(1_000 * 8, 1_014 * 8),
                Step::Learn { mss, window, scale } => {
                    lab.shared.board.learn(ServiceId(0), 0, Accepted { mss, window, wscale: Some(Some(scale)), ..ALL });
                }
                Step::Syn { worker } => {
                    let other = worker.checked_sub(1).map(|other| &mut others[other]);
                    if let Some(other) = other { std::mem::swap(&mut lab.stack, other); }
                    lab.stack.begin_turn(lab.now, wall);
                    let (answer, options) = syn_from(&mut lab, 2_000 + said.len() as u16);
                    if let Some(other) = worker.checked_sub(1).map(|other| &mut others[other]) {
                        std::mem::swap(&mut lab.stack, other);
                    }
                    let key = FlowKey {
                        src: answer.key.dst, dst: answer.key.src, src_port: answer.key.dst_port, dst_port: answer.key.src_port,
                    };
                    said.push((key, answer.seq, SynOffers {
                        mss: options.mss.unwrap(), wscale: options.wscale, window: answer.window,
                        sack: options.sack_permitted, timestamps: options.timestamp.is_some(),
                    }));
                }
                Step::Ack { worker, which } => {
                    let Some((key, cookie, said)) = said.get(which % said.len().max(1)) else { continue };
                    let stack = match worker.checked_sub(1) {
                        Some(other) => &mut others[other],
                        None => &mut lab.stack,
                    };
                    stack.begin_turn(lab.now, wall);
                    if stack.jar.check(key, Seq(ISN), cookie.plus(1)).is_some() {
                        let epoch = stack.jar.epoch_of(key, Seq(ISN), *cookie);
                        prop_assert_eq!(stack.promised(ServiceId(0), epoch), Some(*said));
                    }
                }
            }
        }
    }
}
