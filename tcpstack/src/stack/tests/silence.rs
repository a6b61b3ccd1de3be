//! Ends that say nothing: who is alive, who is gone, who is asked.

use std::time::Duration;

use sluice_filters::Flags;
use sluice_filters::units::Seq;

use super::super::*;
use super::lab::*;
use super::spliced_by_hand::{ISN, PINNED, Talk};
use crate::record::EndCause;

const SPLICED: &str = "mode = \"splice\"\npromise = { probe = \"0s\" }";

fn timeouts(mode: &str, lines: &str) -> String {
    format!("{mode}\n[service.timeouts]\n{lines}\n")
}

fn seconds(lab: &mut Lab, seconds: u64) {
    lab.idle(1_000 * seconds);
}

#[test]
fn a_client_that_answers_every_probe_of_its_closed_window_is_alive_and_one_that_answers_none_is_gone() {
    for mode in [RAW, SPLICED] {
        for loss in [0, 100] {
            let mut lab = Lab::new(&timeouts(mode, "unacknowledged = \"3s\""));
            let (client, server) = established(&mut lab);
            let data = bytes(150_000);
            let mut sent = 0;
            // It reads nothing for two minutes.
            lab.loss = loss;
            lab.run(120_000, |lab| {
                let socket = lab.server.get(server);
                if socket.can_send() && sent < data.len() {
                    sent += socket.send_slice(&data[sent..]).unwrap();
                }
                lab.stack.sessions() == 0
            });
            assert_eq!(lab.stack.sessions(), 1, "{mode}, loss {loss}");
            assert_eq!(lab.client.get(client).recv_queue(), 20_000);
            lab.loss = 0;
            let mut got = Vec::new();
            assert!(lab.run(60_000, |lab| {
                lab.client.read(client, &mut got);
                let socket = lab.server.get(server);
                if socket.can_send() && sent < data.len() {
                    sent += socket.send_slice(&data[sent..]).unwrap();
                }
                got.len() == data.len()
            }));
            assert!(got == data);
            // Once more, and then it is gone.
            lab.server.get(server).send_slice(&data[..20_000]).unwrap();
            lab.client_answers = false;
            assert!(lab.run(20_000, |lab| lab.ended(EndCause::ClientTimeout) == 1), "{mode}");
        }
    }
}

/// A probe whose answer was lost is not the last word, though the next one comes too late for the limit.
#[test]
fn whoever_owes_an_answer_is_asked_before_it_counts_as_gone() {
    let mut talk = Talk::connected(&format!("{PINNED}\n[service.timeouts]\nunacknowledged = \"4s\""));
    talk.client(Flags::ACK, 0, 0, b"?");
    talk.sent();
    let mut asks = Vec::new();
    for _ in 0..40 {
        talk.lab.now.0 += 100_000;
        talk.lab.stack.run_timers(talk.lab.now, 256, &mut talk.lab.below);
        asks.extend(talk.sent().into_iter().map(|(_, segment, ..)| segment.key.dst_port));
    }
    assert!((3..=4).contains(&asks.len()) && asks.iter().all(|port| *port == 80), "{asks:?}");
    // It answers the last of them; the client's next probe is long in coming.
    talk.upstream(Flags::ACK, 0, 0, b"");
    talk.lab.now.0 += 12_000_000;
    talk.lab.stack.run_timers(talk.lab.now, 256, &mut talk.lab.below);
    talk.client(Flags::ACK, 0, 0, b"?");
    talk.lab.now.0 += 500_000;
    talk.lab.stack.run_timers(talk.lab.now, 256, &mut talk.lab.below);
    assert_eq!(talk.lab.stack.sessions(), 1);
}

#[test]
fn keep_alives_of_one_end_keep_the_other_from_being_cut_while_it_is_there() {
    for mode in [RAW, SPLICED] {
        for speaker in [Side::Client, Side::Upstream] {
            let limits = "client_idle = \"10s\"\nupstream_idle = \"10s\"";
            let mut lab = Lab::new(&timeouts(mode, limits));
            let (client, server) = established(&mut lab);
            let every = Some(smoltcp::time::Duration::from_secs(3));
            match speaker {
                Side::Client => lab.client.get(client).set_keep_alive(every),
                Side::Upstream => lab.server.get(server).set_keep_alive(every),
            }
            seconds(&mut lab, 60);
            assert_eq!(lab.stack.sessions(), 1, "{mode} {speaker:?}");
            // The other host is gone: nobody's keep-alives hide that.
            let cause = match speaker {
                Side::Client => {
                    lab.server_answers = false;
                    EndCause::UpstreamIdle
                }
                Side::Upstream => {
                    lab.client_answers = false;
                    EndCause::ClientIdle
                }
            };
            assert!(lab.run(10_500, |lab| lab.ended(cause) == 1), "{mode} {speaker:?}");
        }
    }
}

#[test]
fn a_connection_on_which_nobody_speaks_is_idle_though_both_would_answer() {
    for mode in [RAW, SPLICED] {
        let mut lab = Lab::new(&timeouts(mode, "client_idle = \"10s\"\nupstream_idle = \"10s\""));
        established(&mut lab);
        assert!(lab.run(10_500, |lab| lab.stack.sessions() == 0), "{mode}");
        assert_eq!(lab.ended(EndCause::ClientIdle) + lab.ended(EndCause::UpstreamIdle), 1);
    }
}

#[test]
fn with_idle_timeouts_off_a_connection_lasts_as_long_as_its_ends() {
    let off = "client_idle = \"off\"\nupstream_idle = \"off\"";
    let asked = "[service.keepalive]\nclient = { interval = \"20s\", count = 2 }\nupstream = { interval = \"30s\" }";
    for mode in [RAW, SPLICED] {
        for keepalive in ["", asked] {
            let mut lab = Lab::new(&format!("{}{keepalive}", timeouts(mode, off)));
            established(&mut lab);
            seconds(&mut lab, 700);
            assert_eq!(lab.stack.sessions(), 1, "{mode} {keepalive}");
            lab.client_answers = false;
            seconds(&mut lab, 39);
            assert_eq!(lab.stack.sessions(), 1, "{mode} {keepalive}");
            seconds(&mut lab, 300);
            let gone = u64::from(!keepalive.is_empty());
            assert_eq!(lab.ended(EndCause::ClientTimeout), gone, "{mode} {keepalive}");
            assert_eq!(lab.stack.sessions() as u64, 1 - gone);
        }
    }
}

#[test]
fn a_silent_end_is_asked_once_in_each_interval() {
    for (mode, first) in [("proxy_protocol = \"off\"", 8), (PINNED, ISN.wrapping_add(1))] {
        let keepalive = "[service.keepalive]\nclient = { interval = \"30s\", count = 3 }";
        let mut lab = if mode == PINNED {
            Talk::connected(&format!("{mode}\n{keepalive}")).lab
        } else {
            let mut lab = Lab::new(&format!("{mode}\n{keepalive}"));
            lab.client_answers = false;
            lab.server.listen(80);
            Hand::shake_from(&mut lab, 7);
            assert!(lab.run(100, |lab| lab.stack.sessions() == 1));
            lab
        };
        // Greetings and what follows a handshake.
        lab.idle(100);
        lab.client.wire.incoming.clear();
        let begun = lab.now;
        let mut asks = Vec::new();
        lab.run(130_000, |lab| {
            let packets: Vec<_> = lab.client.wire.incoming.drain(..).collect();
            asks.extend(packets.into_iter().map(|packet| (lab.now.since(begun).as_secs(), read(&packet).0)));
            lab.stack.sessions() == 0
        });
        let times: Vec<u64> = asks.iter().map(|(at, _)| *at).collect();
        let (probes, resets) = asks.split_at(3);
        assert_eq!(times[..4], [29, 59, 89, 119], "{mode}: three probes, then a RST");
        assert!(!resets.is_empty() && resets.iter().all(|(_, segment)| segment.flags.rst()), "{mode}: {asks:?}");
        for (_, probe) in probes {
            assert_eq!((probe.flags, probe.payload_len, probe.ack), (Flags::ACK, 0, Seq(first)), "{mode}");
        }
        assert_eq!(lab.ended(EndCause::ClientTimeout), 1);
    }
}

#[test]
fn a_client_that_has_said_all_may_wait_for_its_answer_as_long_as_any() {
    for mode in [RAW, SPLICED] {
        let mut lab = Lab::new(mode);
        let (client, server) = established(&mut lab);
        lab.client.get(client).send_slice(b"a hard question").unwrap();
        lab.client.get(client).close();
        // More than the 30 s that it had once.
        seconds(&mut lab, 200);
        let mut got = Vec::new();
        lab.server.get(server).send_slice(b"42").unwrap();
        lab.server.get(server).close();
        assert!(
            lab.run(5_000, |lab| {
                lab.client.read(client, &mut got);
                lab.ended(EndCause::Closed) == 1
            }),
            "{mode}"
        );
        assert_eq!(got, b"42");
        assert!(lab.now.since(Micros(0)) > Duration::from_secs(200));
    }
}

/// The kernel of one that has closed and heard the other's FIN has nothing left to say, and answers nobody for long.
#[test]
fn an_end_that_is_finished_may_be_silent_while_the_other_still_reads() {
    let limits = "client_idle = \"4s\"\nupstream_idle = \"4s\"";
    let asked =
        "[service.keepalive]\nclient = { interval = \"1s\", count = 2 }\nupstream = { interval = \"1s\", count = 2 }";
    for finished in [Side::Client, Side::Upstream] {
        for keepalive in ["", asked] {
            let mut lab = Lab::new(&format!("{}{keepalive}", timeouts(RAW, limits)));
            let (client, server) = established(&mut lab);
            let data = bytes(60_000);
            let reader = finished.other();
            // The reader has said all it had to say.
            match reader {
                Side::Client => lab.client.get(client).close(),
                Side::Upstream => lab.server.get(server).close(),
            }
            let mut sent = 0;
            lab.run(2_000, |lab| {
                let (host, socket) = match finished {
                    Side::Client => (&mut lab.client, client),
                    Side::Upstream => (&mut lab.server, server),
                };
                if sent < data.len() {
                    sent += host.get(socket).send_slice(&data[sent..]).unwrap_or(0);
                } else {
                    host.get(socket).close();
                }
                false
            });
            assert_eq!(sent, data.len(), "{finished:?}: it fits our buffers");
            let mut got = Vec::new();
            // Slower than either limit, yet never silent for so long.
            assert!(
                lab.run(60_000, |lab| {
                    let (host, socket) = match reader {
                        Side::Client => (&mut lab.client, client),
                        Side::Upstream => (&mut lab.server, server),
                    };
                    if lab.now.0 % 1_000_000 == 0 {
                        let socket = host.get(socket);
                        let _ = socket.recv(|octets| {
                            let some = octets.len().min(4_000);
                            got.extend_from_slice(&octets[..some]);
                            (some, ())
                        });
                    }
                    lab.stack.sessions() == 0
                }),
                "{finished:?} {keepalive}"
            );
            // What has arrived and was not read yet.
            match reader {
                Side::Client => lab.client.read(client, &mut got),
                Side::Upstream => lab.server.read(server, &mut got),
            }
            assert!(got == data, "{finished:?} {keepalive}: {} bytes", got.len());
            assert_eq!(lab.ended(EndCause::Closed), 1, "{finished:?} {keepalive}");
        }
    }
}
