//! The machine and the folding against a plain reading of BPF, on programs that no compiler would write; and what folding
//! leaves of those that it does.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::fold::{Facts, fold};
use super::machine::{ACCEPT, Instruction, MAX_INSTRUCTIONS, Op, Program, ProgramError, REJECT, View};
use super::*;
use crate::packet::Flags;
use crate::testkit::{self, Opt};
use crate::{Parsed, RxChecksums, parse};

/// Executes undecoded instructions one by one, as `bpf_filter` is written down. None when the packet or the arithmetic ends it.
fn plainly(program: &[Instruction], packet: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut scratch, mut at) = (0u32, 0u32, [0u32; 16], 0);
    let load = |at: u64, octets: u64| {
        let mut value = 0u32;
        for i in at..at + octets {
            value = value << 8 | u32::from(*packet.get(i as usize)?);
        }
        Some(value)
    };
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let octets = [4, 2, 1, 0][usize::from(code >> 3 & 3)];
        let operand = if code & 8 == 0 { k } else { x };
        match code & 7 {
            // ld, ldx
            0 | 1 => {
                let value = match code >> 5 {
                    0 => k,
                    1 => load(k.into(), octets)?,
                    2 => load(u64::from(k) + u64::from(x), octets).filter(|_| u64::from(k) + u64::from(x) < 1 << 32)?,
                    3 => scratch[k as usize],
                    4 => packet.len() as u32,
                    _ => 4 * (load(k.into(), 1)? & 15),
                };
                if code & 7 == 0 { a = value } else { x = value }
            }
            2 => scratch[k as usize] = a,
            3 => scratch[k as usize] = x,
            4 => {
                let shift = |by: u32| if by > 31 { 0 } else { 1u64 << by };
                a = match code >> 4 {
                    0 => a.wrapping_add(operand),
                    1 => a.wrapping_sub(operand),
                    2 => a.wrapping_mul(operand),
                    3 if operand == 0 => return None,
                    3 => a / operand,
                    4 => a | operand,
                    5 => a & operand,
                    6 => (u64::from(a) * shift(operand)) as u32,
                    7 if operand > 31 => 0,
                    7 => a / shift(operand) as u32,
                    8 => 0u32.wrapping_sub(a),
                    9 if operand == 0 => return None,
                    9 => a % operand,
                    _ => a ^ operand,
                };
            }
            5 => {
                let holds = match code >> 4 {
                    0 => {
                        at += k as usize;
                        continue;
                    }
                    1 => a == operand,
                    2 => a > operand,
                    3 => a >= operand,
                    _ => a & operand != 0,
                };
                at += usize::from(if holds { jt } else { jf });
            }
            6 => return Some(if code == 0x16 { a } else { k }),
            _ if code == 0x07 => x = a,
            _ => a = x,
        }
    }
}

const CODES: &[u16] = &[
    0x00, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80, 0x01, 0x61, 0x81, 0xb1, 0x02, 0x03, 0x04, 0x14, 0x24, 0x34,
    0x44, 0x54, 0x64, 0x74, 0x94, 0xa4, 0x0c, 0x1c, 0x2c, 0x3c, 0x4c, 0x5c, 0x6c, 0x7c, 0x9c, 0xac, 0x84, 0x05, 0x15,
    0x25, 0x35, 0x45, 0x1d, 0x2d, 0x3d, 0x4d, 0x06, 0x16, 0x07, 0x87,
];
/// Loads, masks and comparisons: what the folding works on.
const COMMON: &[u16] =
    &[0x20, 0x28, 0x30, 0x48, 0x50, 0x54, 0x74, 0x64, 0x04, 0x15, 0x15, 0x25, 0x35, 0x45, 0x07, 0xb1, 0x0c];

fn instruction() -> impl Strategy<Value = Instruction> {
    let code = prop_oneof![2 => select(COMMON), 1 => select(CODES)];
    let k = prop_oneof![
        4 => 0..80u32,
        2 => 12..24u32,
        2 => select(&[6, 0x0800, 0x86dd, 0x45, 0x60, 0xf0, 0x0f, 0xff, 0x3fff, 443, 80, 20, 54, 60, 0x0a00_0001][..]),
        1 => any::<u32>(),
    ];
    (code, 0..4u8, 0..4u8, k).prop_map(|(code, jt, jf, k)| {
        let k = match code {
            0x02 | 0x03 | 0x60 | 0x61 => k % 4,
            0x05 => k % 4,
            0x64 | 0x74 => k % 34,
            0x06 => k % 2,
            _ => k,
        };
        Instruction { code, jt, jf, k }
    })
}

/// Programs that pass validation: jumps are cut to their length, and the last four instructions return.
fn programs() -> impl Strategy<Value = Vec<Instruction>> {
    (vec(instruction(), 1..30), vec((any::<bool>(), 0..2u32), 4)).prop_map(|(mut program, returns)| {
        program.extend(returns.into_iter().map(|(a, k)| Instruction {
            code: if a { 0x16 } else { 0x06 },
            jt: 0,
            jf: 0,
            k,
        }));
        program
    })
}

fn segments() -> impl Strategy<Value = Vec<u8>> {
    let ends = select(
        &[
            ("10.0.0.1:443", "192.0.2.7:80"),
            ("172.16.0.1:80", "10.0.0.1:443"),
            ("[2001:db8::1]:443", "[2001:db8::2]:80"),
            ("[2001:db8:6::45]:6", "[2001:db8::2]:443"),
        ][..],
    );
    (ends, any::<bool>(), vec(any::<u8>(), 0..30), any::<u8>()).prop_map(|((src, dst), options, payload, tos)| {
        let builder = testkit::tcp(src, dst).tos(tos).payload(payload);
        if options { builder.options([Opt::Mss(1460), Opt::SackPermitted]).build() } else { builder.build() }
    })
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_valid_program_gives_the_plain_readings_verdict(
        program in programs(),
        frames in vec(segments(), 4),
        others in vec(vec(any::<u8>(), 0..70), 4),
    ) {
        let decoded = Program::decode(&program).unwrap();
        for frame in frames.iter().chain(&others) {
            let expected = plainly(&program, frame).is_some_and(|verdict| verdict != 0);
            prop_assert_eq!(decoded.run(&View::whole(frame)), expected, "{:?}", program);
        }
        for frame in &frames {
            let expected = plainly(&program, frame).is_some_and(|verdict| verdict != 0);
            let facts = if frame[12] == 0x08 { Facts::v4() } else { Facts::v6() };
            let folded = fold(&decoded, &facts);
            prop_assert_eq!(folded.run(&View::whole(frame)), expected, "{:?} left of {:?}", folded, program);
            let tagged = tagged(frame);
            prop_assert_eq!(decoded.run(&View::without_tag(&tagged, 4, 0)), expected, "tagged: {:?}", program);
            prop_assert_eq!(folded.run(&View::without_tag(&tagged, 4, 0)), expected, "tagged: {:?}", folded);
            // Frames that the facts do not hold of: any verdict, but no panic.
            for len in [0, 13, 20, 53] {
                let _ = folded.run(&View::without_tag(&frame[..len], 4, 0));
            }
        }
    }

    #[test]
    fn whatever_is_let_in_runs(
        program in vec((any::<u16>(), any::<u8>(), any::<u8>(), any::<u32>()), 0..6),
        codes in vec((select(CODES), 0..6u8, 0..6u8, 0..18u32), 1..12),
        frame in vec(any::<u8>(), 0..70),
    ) {
        let instruction = |(code, jt, jf, k)| Instruction { code, jt, jf, k };
        let _ = Program::decode(&program.into_iter().map(instruction).collect::<Vec<_>>());
        let program: Vec<_> = codes.into_iter().map(instruction).collect();
        if let Ok(decoded) = Program::decode(&program) {
            let expected = plainly(&program, &frame).is_some_and(|verdict| verdict != 0);
            prop_assert_eq!(decoded.run(&View::whole(&frame)), expected);
            let _ = fold(&decoded, &Facts::v4()).run(&View::whole(&frame));
        }
    }
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

#[test]
fn a_program_has_to_end_inside_itself() {
    let end = op(0x06, 1);
    assert_eq!(Program::decode(&[]), Err(ProgramError::Empty));
    assert_eq!(Program::decode(&[op(0x00, 1)]), Err(ProgramError::NoReturn));
    assert_eq!(Program::decode(&[op(0x05, 1), end]), Err(ProgramError::Jump(0)));
    assert_eq!(Program::decode(&[end, op(0x05, u32::MAX), end]), Err(ProgramError::Jump(1)), "backwards");
    assert_eq!(Program::decode(&[Instruction { code: 0x15, jt: 0, jf: 1, k: 0 }, end]), Err(ProgramError::Jump(0)));
    assert_eq!(Program::decode(&[op(0x02, 16), end]), Err(ProgramError::Scratch(0)));
    assert_eq!(Program::decode(&[op(0x60, 1 << 8), end]), Err(ProgramError::Scratch(0)));
    assert_eq!(Program::decode(&[op(0xff, 0), end]), Err(ProgramError::UnknownCode { at: 0, code: 0xff }));
    assert_eq!(Program::decode(&[end; MAX_INSTRUCTIONS + 1]), Err(ProgramError::TooLong(MAX_INSTRUCTIONS + 1)));
    assert!(Program::decode(&[end; MAX_INSTRUCTIONS]).is_ok());
}

#[test]
fn an_instruction_fills_16_octets() {
    assert_eq!(size_of::<Op>(), 16);
}

fn left(text: &str) -> (Vec<Op>, Vec<Op>) {
    let expression = Expression::compile(text).unwrap();
    (expression.v4.ops().to_vec(), expression.v6.ops().to_vec())
}

#[test]
fn a_port_takes_one_comparison() {
    let test = |at, mask, value| vec![Op::FieldIs { at, jt: ACCEPT, jf: REJECT, mask, value }];
    assert_eq!(left("tcp dst port 443"), (test(36, 0xffff_0000, 443 << 16), test(56, 0xffff_0000, 443 << 16)));
    assert_eq!(left("ip6 and tcp dst port 443").0, [Op::Jump(REJECT)]);
    assert_eq!(
        left("tcp[13] & 2 != 0").0,
        [Op::FieldIs { at: 47, jt: REJECT, jf: ACCEPT, mask: 0x0200_0000, value: 0 }]
    );
}

#[test]
fn what_the_parser_proved_is_not_asked_again() {
    let constant = |text| {
        let expression = Expression::compile(text).unwrap();
        (expression.constant_v4(), expression.constant_v6())
    };
    assert_eq!(constant("tcp"), (Some(true), Some(true)));
    assert_eq!(constant("ip"), (Some(true), Some(false)));
    assert_eq!(constant("ip6"), (Some(false), Some(true)));
    assert_eq!(constant("udp"), (Some(false), Some(false)));
    assert_eq!(constant("arp or icmp"), (Some(false), Some(false)));
    assert_eq!(constant("ip[0] = 0x45"), (Some(true), Some(false)));
    assert_eq!(constant("ip[6:2] & 0x3fff = 0"), (Some(true), Some(false)));
    assert_eq!(constant("ip6[6] = 6"), (Some(false), Some(true)));
    assert_eq!(constant("ether multicast"), (Some(false), Some(false)));
    assert_eq!(constant("greater 54"), (Some(true), Some(true)));
    assert_eq!(constant("less 53 or udp"), (Some(false), Some(false)));
    assert_eq!((constant("len > 53"), constant("len > 54")), ((Some(true), Some(true)), (None, Some(true))));
    // "Don't fragment" is free, and so is the traffic class.
    assert_eq!(constant("ip[6] & 0x40 = 0"), (None, Some(false)));
    assert_eq!(constant("ip6[0] = 0x60"), (Some(false), None));
    assert_eq!(constant("greater 55"), (None, Some(true)));
}

#[test]
fn a_list_of_hosts_is_one_lookup() {
    let hosts: Vec<_> = (1..=60).map(|i| format!("192.0.2.{i}")).collect();
    let (v4, v6) = left(&format!("src host ({})", hosts.join(" or ")));
    assert_eq!(v4, [Op::FieldIn { at: 26, jt: ACCEPT, jf: REJECT, mask: u32::MAX, first: 0, count: 60 }]);
    assert_eq!(v6, [Op::Jump(REJECT)]);
    let (v4, _) = left(&format!("not host ({})", hosts.join(" or ")));
    assert_eq!(v4.len(), 2);
    let expression = Expression::compile(&format!("tcp port 80 and not src host ({})", hosts.join(" or "))).unwrap();
    for (src, dst) in [(1, 80), (60, 80), (61, 80), (0, 80), (99, 81)] {
        let frame = testkit::tcp(format!("192.0.2.{src}:40000").as_str(), format!("10.0.0.1:{dst}").as_str()).build();
        assert_eq!(both(&expression, &frame), dst == 80 && (src > 60 || src == 0), "{src} {dst}");
    }
}

#[test]
fn a_payload_signature_takes_a_load_and_a_comparison() {
    let (v4, _) = left("tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420");
    assert_eq!(v4.len(), 2, "{v4:?}");
    assert!(matches!(v4[0], Op::LoadBehind { .. }));
    let expression = Expression::compile("tcp[((tcp[12:1] & 0xf0) >> 2):4] = 0x47455420").unwrap();
    let request = testkit::tcp("192.0.2.7:40000", "10.0.0.1:80").payload(b"GET /");
    assert!(both(&expression, &request.clone().build()));
    assert!(both(&expression, &request.clone().options([Opt::Mss(1460), Opt::Timestamp(1, 2)]).build()));
    assert!(!both(&expression, &request.clone().payload(b"HEAD /").build()));
    assert!(!both(&expression, &request.payload(b"GE").build()), "a load beyond the frame ends it");
}

/// The verdict by the general program and by what is left of it, which have to agree; also of the frame with a tag.
fn both(expression: &Expression, frame: &[u8]) -> bool {
    let verdict = expression.matches(frame);
    for frame in [frame.to_vec(), tagged(frame)] {
        let Ok(Parsed::Tcp(segment)) = parse(&frame, RxChecksums::default()) else { panic!("not TCP") };
        assert_eq!(expression.matches_segment(&frame, &segment), verdict);
    }
    verdict
}

fn verdict(text: &str, frame: &[u8]) -> bool {
    both(&Expression::compile(text).unwrap(), frame)
}

#[test]
fn a_tag_is_not_there() {
    let frame = testkit::tcp("192.0.2.7:40000", "10.0.0.1:80").payload([7; 10]).build();
    assert_eq!(frame.len(), 64);
    assert!(verdict("len = 64", &frame));
    assert!(verdict("ether[12:2] = 0x0800", &frame));
    // Octets on both sides of where it was.
    assert!(verdict("ether[10:4] = 0x00010800", &frame));
    assert!(verdict("ether[11:2] = 0x0108", &frame));
    assert!(verdict("ether src 02:00:00:00:00:01 and ether dst 02:00:00:00:00:02", &frame));
    assert!(verdict("ether[63] = 7", &frame));
    assert!(!verdict("ether[64] = 7", &frame));
}

#[test]
fn padding_is_there() {
    let frame = testkit::tcp("192.0.2.7:40000", "10.0.0.1:80").pad_to(60).build();
    assert!(verdict("len = 60 and tcp[20:4] = 0 and tcp[25] = 0", &frame));
    assert!(!verdict("tcp[26] = 0", &frame));
    assert!(verdict("less 60 and greater 60", &frame));
}

#[test]
fn a_division_by_zero_ends_it() {
    let frame = |urgent| testkit::tcp("192.0.2.7:40000", "10.0.0.1:80").flags(Flags::ACK).urgent(urgent).build();
    assert!(verdict("not 8 / tcp[18:2] = 3", &frame(4)));
    assert!(!verdict("not 8 / tcp[18:2] = 3", &frame(0)));
    assert!(!verdict("not 8 % tcp[18:2] = 3 or tcp", &frame(0)));
    assert!(Expression::compile("tcp[0] / 0 = 1").unwrap_err().to_string().contains("division by zero"));
}

#[test]
fn long_lists_compile_or_are_refused() {
    let list = |count: u32| {
        let ports: Vec<_> = (1..=count).map(|port| port.to_string()).collect();
        format!("tcp dst port ({})", ports.join(" or "))
    };
    let expression = Expression::compile(&list(200)).unwrap();
    let frame = |port: u16| testkit::tcp("192.0.2.7:40000", (std::net::IpAddr::from([10, 0, 0, 1]), port)).build();
    assert!(both(&expression, &frame(1)) && both(&expression, &frame(200)) && !both(&expression, &frame(201)));
    let ExpressionError::TooManyInstructions(_) = Expression::compile(&list(400)).unwrap_err() else { panic!() };
    let nested = format!("{}tcp{}", "(".repeat(8000), ")".repeat(8000));
    let _ = Expression::compile(&nested);
}
