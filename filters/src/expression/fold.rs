//! What is left of a program once a frame is known to hold a TCP segment of one IP version.
//!
//! The parser has proved some octets of an accepted segment and how long its headers are at least ([`Facts`]; the proofs are
//! in `parse.rs`). One pass over the program, whose jumps all lead forward, works out what `A`, `X` and the scratch words
//! hold at each instruction under these facts: a number, some bits of the headers ([`Field`]), or something unknown. Known
//! results become numbers, known decisions become jumps, a decision about a field becomes one fused instruction. A second
//! pass, backwards, drops what nobody reads; a third joins equal tests of one field into a lookup.
//!
//! Invariant: on every segment of which the facts hold, the result gives the verdict of the program it came from. A load
//! that may leave the packet, and so end the program, is never dropped or moved.

use std::collections::{BTreeMap, HashMap};

use super::machine::{ACCEPT, Alu, Compare, MAX_INSTRUCTIONS, Op, Program, REJECT, SCRATCH, Size};

/// Octets of the longest prefix that facts speak of.
const PREFIX: usize = 74;
/// How many equal tests of one field make a lookup worth its while.
const LOOKUP: usize = 4;

/// What the parser has proved of an accepted TCP segment's frame, its tag taken out: of each octet the bits that are known
/// and their values.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Octets that are there at least.
    len: usize,
    known: [u8; PREFIX],
    value: [u8; PREFIX],
}

impl Facts {
    fn new(len: usize) -> Facts {
        let mut facts = Facts { len, known: [0; PREFIX], value: [0; PREFIX] };
        // Neither to a group nor from one.
        facts.learn(0, 0x01, 0);
        facts.learn(6, 0x01, 0);
        facts
    }

    fn learn(&mut self, at: usize, known: u8, value: u8) {
        self.known[at] = known;
        self.value[at] = value;
    }

    /// TCP in IPv4: five words of header, no fragment, "don't fragment" free.
    pub(super) fn v4() -> Facts {
        let mut facts = Facts::new(14 + 20 + 20);
        facts.learn(12, 0xff, 0x08);
        facts.learn(13, 0xff, 0x00);
        facts.learn(14, 0xff, 0x45);
        facts.learn(20, 0xbf, 0);
        facts.learn(21, 0xff, 0);
        facts.learn(23, 0xff, 6);
        facts
    }

    /// TCP in IPv6: no extension header.
    pub(super) fn v6() -> Facts {
        let mut facts = Facts::new(14 + 40 + 20);
        facts.learn(12, 0xff, 0x86);
        facts.learn(13, 0xff, 0xdd);
        facts.learn(14, 0xf0, 0x60);
        facts.learn(20, 0xff, 6);
        facts
    }

    /// The word at `at`, which is inside: its known bits, and their values.
    fn word(&self, at: u16) -> (u32, u32) {
        let at = usize::from(at);
        let word =
            |octets: &[u8; PREFIX]| u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        (word(&self.known), word(&self.value))
    }

    /// Whether a load stays inside the headers.
    fn holds(&self, size: Size, at: u32) -> bool {
        u64::from(at) + u64::from(size.octets()) <= self.len as u64
    }
}

/// `(word at at & mask) >> shift`, all inside the headers. The mask has no bit below the shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    at: u16,
    mask: u32,
    shift: u32,
}

impl Field {
    /// None for a load that may leave the headers.
    fn of(size: Size, at: u32, facts: &Facts) -> Option<Field> {
        if !facts.holds(size, at) {
            return None;
        }
        let (at, octets) = (at as usize, size.octets() as usize);
        // A word that holds the octets and nothing beyond the headers.
        let word = at.min(facts.len - 4);
        let shift = 8 * (word + 4 - (at + octets)) as u32;
        let mask = u32::MAX >> (32 - 8 * octets) << shift;
        Some(Field { at: word as u16, mask, shift })
    }

    /// The field with what the facts know of it.
    fn value(self, facts: &Facts) -> Value {
        let (known, value) = facts.word(self.at);
        if self.mask & !known == 0 { Value::Number((value & self.mask) >> self.shift) } else { Value::Sum(self, 0) }
    }

    /// The operation's result, when it is a field too.
    fn alu(self, alu: Alu, k: u32) -> Option<Field> {
        let Field { at, mask, shift } = self;
        match alu {
            Alu::And => Some(Field { at, mask: mask & k << shift, shift }),
            Alu::Rsh if shift + k.min(32) < 32 => {
                let shift = shift + k;
                Some(Field { at, mask: mask >> shift << shift, shift })
            }
            Alu::Lsh if k <= shift => Some(Field { at, mask, shift: shift - k }),
            _ => None,
        }
    }

    /// What a comparison with a number comes to.
    fn compare(self, compare: FieldCompare, k: u32, jt: u16, jf: u16, facts: &Facts) -> Op {
        let Field { at, mask, shift } = self;
        let (known, value) = facts.word(at);
        let (known, unknown) = (mask & known, mask & !known);
        let settled = |holds| Op::Jump(if holds { jt } else { jf });
        let shifted = u64::from(k) << shift;
        // In the word's place, or none when no field reaches it.
        let place = u32::try_from(shifted).ok();
        match compare {
            FieldCompare::Equal => match place {
                Some(k) if k & !mask == 0 && (k ^ value) & known == 0 => {
                    let (mask, value) = (unknown, k & unknown);
                    if mask == 0 { settled(true) } else { Op::FieldIs { at, jt, jf, mask, value } }
                }
                _ => settled(false),
            },
            FieldCompare::AtLeast => match place {
                Some(k) if k <= value & known => settled(true),
                Some(k) if k <= value & known | unknown => Op::FieldFrom { at, jt, jf, mask, value: k },
                _ => settled(false),
            },
            FieldCompare::AnyBit => {
                let bits = shifted as u32;
                let mask = unknown & bits;
                if value & known & bits != 0 {
                    settled(true)
                } else if mask == 0 {
                    settled(false)
                } else {
                    Op::FieldIs { at, jt: jf, jf: jt, mask, value: 0 }
                }
            }
        }
    }
}

/// The comparisons that a field's place in its word does not disturb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldCompare {
    Equal,
    AtLeast,
    AnyBit,
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Unknown,
    Number(u32),
    /// A field plus a number; their sum does not wrap.
    Sum(Field, u32),
    /// The packet's length.
    Length,
}

impl Value {
    fn number(self) -> Option<u32> {
        if let Value::Number(number) = self { Some(number) } else { None }
    }

    fn alu(self, alu: Alu, other: Value, facts: &Facts) -> Value {
        match (self, other) {
            (Value::Number(a), Value::Number(b)) => alu.apply(a, b).map_or(Value::Unknown, Value::Number),
            (Value::Sum(field, 0), Value::Number(k)) if alu != Alu::Add => match field.alu(alu, k) {
                Some(field) => field.value(facts),
                None => Value::Unknown,
            },
            (Value::Sum(field, add), Value::Number(k)) if alu == Alu::Add => match add.checked_add(k) {
                Some(add) if (field.mask >> field.shift).checked_add(add).is_some() => Value::Sum(field, add),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }

    /// What a comparison with a number comes to, `op` when nothing better is known.
    fn compare(self, op: Op, (compare, k): (Compare, u32), jt: u16, jf: u16, facts: &Facts) -> Op {
        let settled = |holds| Op::Jump(if holds { jt } else { jf });
        match (self, compare) {
            (Value::Unknown, _) => op,
            (Value::Number(a), _) => settled(compare.holds(a, k)),
            (Value::Length, Compare::AtLeast) if k as usize <= facts.len => settled(true),
            (Value::Length, Compare::Greater) if (k as usize) < facts.len => settled(true),
            (Value::Length, Compare::Equal) if (k as usize) < facts.len => settled(false),
            (Value::Length, _) => Op::LengthIs { compare, jt, jf, k },
            (Value::Sum(field, 0), Compare::AnyBit) => field.compare(FieldCompare::AnyBit, k, jt, jf, facts),
            (Value::Sum(..), Compare::AnyBit) => op,
            (Value::Sum(field, add), Compare::Equal) => match k.checked_sub(add) {
                Some(k) => field.compare(FieldCompare::Equal, k, jt, jf, facts),
                None => settled(false),
            },
            (Value::Sum(field, add), Compare::AtLeast) => {
                field.compare(FieldCompare::AtLeast, k.saturating_sub(add), jt, jf, facts)
            }
            // Greater than k is at least k + 1.
            (Value::Sum(..), Compare::Greater) => match k.checked_add(1) {
                Some(k) => self.compare(op, (Compare::AtLeast, k), jt, jf, facts),
                None => settled(false),
            },
        }
    }
}

/// The registers and the scratch memory before an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    a: Value,
    x: Value,
    scratch: [Value; SCRATCH],
}

impl State {
    const START: State = State { a: Value::Number(0), x: Value::Number(0), scratch: [Value::Number(0); SCRATCH] };

    /// What holds whichever way the program came.
    fn join(&mut self, other: &State) {
        let join = |mine: &mut Value, theirs: Value| {
            if *mine != theirs {
                *mine = Value::Unknown;
            }
        };
        join(&mut self.a, other.a);
        join(&mut self.x, other.x);
        self.scratch.iter_mut().zip(other.scratch).for_each(|(mine, theirs)| join(mine, theirs));
    }
}

/// The program for segments of which the facts hold.
pub(super) fn fold(program: &Program, facts: &Facts) -> Program {
    let mut ops = settle(program.ops(), facts);
    // Twice: a decision that turns out to make no difference leaves what it read unread.
    for _ in 0..2 {
        drop_unread(&mut ops, facts);
        thread(&mut ops);
    }
    emit(&ops)
}

/// Whether the program may read a scratch word that it has not written.
pub(super) fn reads_unwritten(program: &Program) -> bool {
    let ops = program.ops();
    // What is written for certain before each instruction; all of it where none leads.
    let mut written = vec![u32::MAX; ops.len()];
    if let Some(first) = written.first_mut() {
        *first = A | X;
    }
    for (at, &op) in ops.iter().enumerate() {
        let (reads, writes) = effects(op);
        if reads & !written[at] != 0 {
            return true;
        }
        let after = written[at] | writes;
        for to in successors(op, at) {
            if let Some(written) = written.get_mut(usize::from(to)) {
                *written &= after;
            }
        }
    }
    false
}

/// Replaces each instruction by what it comes to. Those that cannot be reached keep their form.
fn settle(ops: &[Op], facts: &Facts) -> Vec<Op> {
    let mut before: Vec<Option<State>> = vec![None; ops.len()];
    if let Some(first) = before.first_mut() {
        *first = Some(State::START);
    }
    let mut out = Vec::with_capacity(ops.len());
    for (at, &op) in ops.iter().enumerate() {
        let Some(mut state) = before[at] else {
            out.push(op);
            continue;
        };
        let op = step(op, &mut state, facts);
        for to in successors(op, at) {
            match before.get_mut(usize::from(to)) {
                Some(Some(joined)) => joined.join(&state),
                Some(unreached) => *unreached = Some(state),
                None => {}
            }
        }
        out.push(op);
    }
    out
}

/// What an instruction comes to in this state, which becomes the state after it.
fn step(op: Op, state: &mut State, facts: &Facts) -> Op {
    let load = |size, at| Field::of(size, at, facts).map_or(Value::Unknown, |field| field.value(facts));
    // What is known needs no look at what it came from, unless that may end the program.
    let into_a = |state: &mut State, value: Value, op| {
        state.a = value;
        match value {
            Value::Number(k) => Op::Immediate(k),
            Value::Sum(Field { at, mask, shift }, add) => Op::Field { at, shift: shift as u8, mask, add },
            Value::Length => Op::Length,
            Value::Unknown => op,
        }
    };
    let into_x = |state: &mut State, value: Value, op| {
        state.x = value;
        match value {
            Value::Number(k) => Op::ImmediateX(k),
            Value::Sum(Field { at, mask, shift }, add) => Op::FieldX { at, shift: shift as u8, mask, add },
            Value::Length => Op::LengthX,
            Value::Unknown => op,
        }
    };
    let alu_k = |state: &mut State, alu, k| match (alu, k) {
        (Alu::Div | Alu::Mod, 0) => Op::Jump(REJECT),
        _ => into_a(state, state.a.alu(alu, Value::Number(k), facts), Op::AluK(alu, k)),
    };
    let recall = |state: &State, i: u8| state.scratch[usize::from(i)];
    match op {
        Op::Load(size, at) => into_a(state, load(size, at), op),
        Op::LoadIndirect(size, k) => match state.x {
            Value::Number(x) => match x.checked_add(k) {
                Some(at) => into_a(state, load(size, at), Op::Load(size, at)),
                None => Op::Jump(REJECT),
            },
            Value::Sum(Field { at, mask, shift }, add) => {
                let behind = |add| Op::LoadBehind { size, at, shift: shift as u8, mask, add };
                into_a(state, Value::Unknown, add.checked_add(k).map_or(Op::Jump(REJECT), behind))
            }
            _ => into_a(state, Value::Unknown, op),
        },
        Op::Immediate(k) => into_a(state, Value::Number(k), op),
        Op::Recall(i) => into_a(state, recall(state, i), op),
        Op::Length => into_a(state, Value::Length, op),
        Op::HeaderLengthX(at) => {
            let nibble = load(Size::Byte, at).alu(Alu::And, Value::Number(15), facts);
            into_x(state, nibble.alu(Alu::Lsh, Value::Number(2), facts), op)
        }
        Op::ImmediateX(k) => into_x(state, Value::Number(k), op),
        Op::RecallX(i) => into_x(state, recall(state, i), op),
        Op::LengthX => into_x(state, Value::Length, op),
        Op::Store(i) => {
            state.scratch[usize::from(i)] = state.a;
            op
        }
        Op::StoreX(i) => {
            state.scratch[usize::from(i)] = state.x;
            op
        }
        Op::AluK(alu, k) => alu_k(state, alu, k),
        Op::AluX(alu) => match state.x.number() {
            Some(k) => alu_k(state, alu, k),
            None => into_a(state, Value::Unknown, op),
        },
        Op::Negate => {
            let value = state.a.number().map_or(Value::Unknown, |a| Value::Number(a.wrapping_neg()));
            into_a(state, value, op)
        }
        Op::AToX => into_x(state, state.a, op),
        Op::XToA => into_a(state, state.x, op),
        Op::JumpK { compare, jt, jf, k } => state.a.compare(op, (compare, k), jt, jf, facts),
        Op::JumpX { compare, jt, jf } => match state.x.number() {
            Some(k) => state.a.compare(Op::JumpK { compare, jt, jf, k }, (compare, k), jt, jf, facts),
            None => op,
        },
        Op::ReturnA => match state.a.number() {
            Some(a) => Op::Jump(if a == 0 { REJECT } else { ACCEPT }),
            None => op,
        },
        // The decoder makes none of the others.
        _ => op,
    }
}

/// Where the program may go from the instruction at `at`.
fn successors(op: Op, at: usize) -> impl Iterator<Item = u16> {
    let (first, second) = match op {
        Op::FieldIs { jt, jf, .. }
        | Op::FieldFrom { jt, jf, .. }
        | Op::FieldIn { jt, jf, .. }
        | Op::LengthIs { jt, jf, .. }
        | Op::JumpK { jt, jf, .. }
        | Op::JumpX { jt, jf, .. } => (Some(jt), Some(jf)),
        Op::Jump(to) => (Some(to), None),
        Op::ReturnA => (None, None),
        _ => (Some(at as u16 + 1), None),
    };
    first.into_iter().chain(second)
}

/// The instruction with other targets.
fn redirect(op: Op, to: impl Fn(u16) -> u16) -> Op {
    let mut op = op;
    match &mut op {
        Op::FieldIs { jt, jf, .. }
        | Op::FieldFrom { jt, jf, .. }
        | Op::FieldIn { jt, jf, .. }
        | Op::LengthIs { jt, jf, .. }
        | Op::JumpK { jt, jf, .. }
        | Op::JumpX { jt, jf, .. } => {
            *jt = to(*jt);
            *jf = to(*jf);
        }
        Op::Jump(target) => *target = to(*target),
        _ => {}
    }
    op
}

const A: u32 = 1 << 16;
const X: u32 = 1 << 17;

/// What an instruction reads and writes: `A`, `X`, and a bit for each scratch word.
fn effects(op: Op) -> (u32, u32) {
    match op {
        Op::FieldIs { .. } | Op::FieldFrom { .. } | Op::FieldIn { .. } | Op::LengthIs { .. } | Op::Jump(_) => (0, 0),
        Op::Field { .. } | Op::LoadBehind { .. } | Op::Load(..) | Op::Immediate(_) | Op::Length => (0, A),
        Op::LoadIndirect(..) | Op::XToA => (X, A),
        Op::Recall(i) => (1 << i, A),
        Op::FieldX { .. } | Op::HeaderLengthX(_) | Op::ImmediateX(_) | Op::LengthX => (0, X),
        Op::RecallX(i) => (1 << i, X),
        Op::Store(i) => (A, 1 << i),
        Op::StoreX(i) => (X, 1 << i),
        Op::AluK(..) | Op::Negate => (A, A),
        Op::AluX(_) => (A | X, A),
        Op::AToX => (A, X),
        Op::JumpK { .. } | Op::ReturnA => (A, 0),
        Op::JumpX { .. } => (A | X, 0),
    }
}

/// Whether the instruction does nothing but write: it cannot end the program, nor choose its way.
fn only_writes(op: Op, facts: &Facts) -> bool {
    match op {
        Op::Load(size, at) => facts.holds(size, at),
        Op::HeaderLengthX(at) => facts.holds(Size::Byte, at),
        Op::LoadBehind { .. } | Op::LoadIndirect(..) | Op::AluX(Alu::Div | Alu::Mod) => false,
        op => effects(op).1 != 0,
    }
}

/// Drops instructions whose results nobody reads.
fn drop_unread(ops: &mut [Op], facts: &Facts) {
    let mut read = vec![0; ops.len() + 1];
    for (at, op) in ops.iter_mut().enumerate().rev() {
        let after = successors(*op, at).fold(0, |all, to| all | read.get(usize::from(to)).copied().unwrap_or(0));
        let (reads, writes) = effects(*op);
        read[at] = if only_writes(*op, facts) && after & writes == 0 {
            *op = Op::Jump(at as u16 + 1);
            after
        } else {
            after & !writes | reads
        };
    }
}

/// Makes jumps to jumps lead where those lead, and decisions without a difference into jumps.
fn thread(ops: &mut [Op]) {
    for at in (0..ops.len()).rev() {
        let end = |to: u16| match ops.get(usize::from(to)) {
            Some(&Op::Jump(end)) => end,
            _ => to,
        };
        let op = redirect(ops[at], end);
        ops[at] = match op {
            Op::FieldIs { jt, jf, .. }
            | Op::FieldFrom { jt, jf, .. }
            | Op::JumpK { jt, jf, .. }
            | Op::JumpX { jt, jf, .. }
                if jt == jf =>
            {
                Op::Jump(jt)
            }
            op => op,
        };
    }
}

/// In a chain of tests: the one after this.
const NEXT: u16 = REJECT - 1;
/// How many instructions chains may take in all. Each is at most as long as what it replaces, but chains may share tails.
const CHAINS: usize = 4 * MAX_INSTRUCTIONS;

/// Lays out what can be reached from the first instruction, equal tests joined.
fn emit(ops: &[Op]) -> Program {
    let resolve = |to: u16| match ops.get(usize::from(to)) {
        Some(&Op::Jump(end)) => end,
        _ => to,
    };
    let entry = resolve(0);
    if entry >= REJECT {
        return Program::new(vec![Op::Jump(entry)], Vec::new());
    }
    let mut chains = Chains { ops, plain: vec![false; ops.len()], left: CHAINS, values: Vec::new() };
    let mut pieces: BTreeMap<u16, Vec<Op>> = BTreeMap::new();
    let mut pending = vec![entry];
    while let Some(at) = pending.pop() {
        let Some(&op) = ops.get(usize::from(at)) else { continue };
        if pieces.contains_key(&at) {
            continue;
        }
        let piece = chains.from(at).unwrap_or_else(|| vec![op]);
        pending.extend(piece.iter().flat_map(|&op| successors(op, usize::from(at))).map(resolve));
        pieces.insert(at, piece);
    }
    let mut out = Vec::new();
    let mut places = vec![REJECT; ops.len()];
    let mut following = pieces.keys().skip(1);
    for (&at, piece) in &pieces {
        places[usize::from(at)] = out.len() as u16;
        out.extend(piece);
        let following = following.next();
        let next = resolve(at + 1);
        // What does not jump goes on to what comes next in the new order.
        if successors(ops[usize::from(at)], usize::from(at)).eq([at + 1]) && following != Some(&next) {
            out.push(Op::Jump(next));
        }
    }
    for (at, op) in out.iter_mut().enumerate() {
        *op = redirect(*op, |to| match to {
            NEXT => at as u16 + 1,
            ACCEPT | REJECT => to,
            to => places[usize::from(to)],
        });
    }
    Program::new(out, chains.values)
}

/// Finds chains of tests that all lead to one place when they hold, as `host a or b or c` gives.
struct Chains<'a> {
    ops: &'a [Op],
    /// Instructions whose chain is not worth a lookup.
    plain: Vec<bool>,
    left: usize,
    values: Vec<u32>,
}

impl Chains<'_> {
    /// The tests from this instruction on, those of one field joined into a lookup. None when there is nothing to join.
    /// Their order does not matter: none of them can end the program.
    fn from(&mut self, start: u16) -> Option<Vec<Op>> {
        let Some(&Op::FieldIs { jt: hit, .. }) = self.ops.get(usize::from(start)) else { return None };
        if self.plain[usize::from(start)] {
            return None;
        }
        let mut fields: Vec<(u16, u32)> = Vec::new();
        let mut tests: HashMap<(u16, u32), Vec<u32>> = HashMap::new();
        let mut links = Vec::new();
        let mut miss = start;
        while let Some(&Op::FieldIs { at, jt, jf, mask, value }) =
            self.ops.get(usize::from(miss)).filter(|_| miss != hit)
            && jt == hit
        {
            let values = tests.entry((at, mask)).or_default();
            if values.is_empty() {
                fields.push((at, mask));
            }
            values.push(value);
            links.push(miss);
            miss = jf;
        }
        let room = self.left >= links.len() && self.values.len() + links.len() <= usize::from(u16::MAX);
        if !room || tests.values().all(|values| values.len() < LOOKUP) {
            links.iter().for_each(|&link| self.plain[usize::from(link)] = true);
            return None;
        }
        self.left -= links.len();
        let mut chain = Vec::new();
        for (at, mask) in fields {
            let mut values = tests.remove(&(at, mask)).unwrap_or_default();
            values.sort_unstable();
            values.dedup();
            if values.len() < LOOKUP {
                chain.extend(values.iter().map(|&value| Op::FieldIs { at, jt: hit, jf: NEXT, mask, value }));
            } else {
                let (first, count) = (self.values.len() as u16, values.len() as u16);
                self.values.extend(values);
                chain.push(Op::FieldIn { at, jt: hit, jf: NEXT, mask, first, count });
            }
        }
        if let Some(last) = chain.last_mut() {
            *last = redirect(*last, |to| if to == NEXT { miss } else { to });
        }
        Some(chain)
    }
}
