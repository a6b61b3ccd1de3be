//! The machine that runs filter programs: classic BPF as libpcap's own `bpf_filter` executes it, plus a few fused tests.
//!
//! Invariants: [`Program::decode`] lets a program in only when every jump goes forward to an instruction, every scratch index is
//! below 16 and the last instruction returns; a program therefore ends after at most its own length. A load outside the
//! packet and a division by zero end it with "no match". Arithmetic wraps; a shift by 32 or more gives 0.
//! McCanne and Jacobson, "The BSD Packet Filter", 1993; pcap-filter(7).

/// The longest program taken, in instructions.
pub(super) const MAX_INSTRUCTIONS: usize = 4096;
/// The scratch memory's words.
pub(super) const SCRATCH: usize = 16;
/// Where a program jumps to say "match". No program is long enough to have an instruction there.
pub(super) const ACCEPT: u16 = u16::MAX;
/// Where a program jumps to say "no match".
pub(super) const REJECT: u16 = u16::MAX - 1;
/// Octets of the two Ethernet addresses: what comes before an 802.1Q tag.
const MACS: usize = 12;

/// One instruction as libpcap's compiler writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Why a program is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("an empty program")]
    Empty,
    #[error("{0} instructions")]
    TooLong(usize),
    #[error("instruction {at}: unknown code {code:#x}")]
    UnknownCode { at: usize, code: u16 },
    #[error("instruction {0}: a jump that does not lead forward to an instruction")]
    Jump(usize),
    #[error("instruction {0}: no such scratch word")]
    Scratch(usize),
    #[error("the last instruction does not return")]
    NoReturn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Byte,
    Half,
    Word,
}

impl Size {
    pub(super) fn octets(self) -> u32 {
        match self {
            Size::Byte => 1,
            Size::Half => 2,
            Size::Word => 4,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    And,
    Or,
    Xor,
    Lsh,
    Rsh,
}

impl Alu {
    /// None for a division by zero.
    #[inline]
    pub(super) fn apply(self, a: u32, b: u32) -> Option<u32> {
        Some(match self {
            Alu::Add => a.wrapping_add(b),
            Alu::Sub => a.wrapping_sub(b),
            Alu::Mul => a.wrapping_mul(b),
            Alu::Div => a.checked_div(b)?,
            Alu::Mod => a.checked_rem(b)?,
            Alu::And => a & b,
            Alu::Or => a | b,
            Alu::Xor => a ^ b,
            Alu::Lsh => a.checked_shl(b).unwrap_or(0),
            Alu::Rsh => a.checked_shr(b).unwrap_or(0),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    Greater,
    AtLeast,
    AnyBit,
}

impl Compare {
    #[inline]
    pub(super) fn holds(self, a: u32, b: u32) -> bool {
        match self {
            Compare::Equal => a == b,
            Compare::Greater => a > b,
            Compare::AtLeast => a >= b,
            Compare::AnyBit => a & b != 0,
        }
    }
}

/// One decoded instruction; targets are absolute, [`ACCEPT`] or [`REJECT`]. `A` and `X` are BPF's registers. What does not
/// jump goes on to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Whether the masked word of the packet equals `value`. This and the next two leave `A` and `X` alone.
    FieldIs { at: u16, jt: u16, jf: u16, mask: u32, value: u32 },
    /// Whether the masked word of the packet is at least `value`.
    FieldFrom { at: u16, jt: u16, jf: u16, mask: u32, value: u32 },
    /// Whether the masked word of the packet is among `count` of the program's values, from `first` on.
    FieldIn { at: u16, jt: u16, jf: u16, mask: u32, first: u16, count: u16 },
    /// Compares the packet's length with `k`. Leaves `A` and `X` alone too.
    LengthIs { compare: Compare, jt: u16, jf: u16, k: u32 },
    /// `A = (masked word of the packet >> shift) + add`
    Field { at: u16, shift: u8, mask: u32, add: u32 },
    /// `X =` the same.
    FieldX { at: u16, shift: u8, mask: u32, add: u32 },
    /// `A = packet[(masked word of the packet >> shift) + add..]`
    LoadBehind { size: Size, at: u16, shift: u8, mask: u32, add: u32 },
    /// `A = packet[at..]`
    Load(Size, u32),
    /// `A = packet[X + k..]`
    LoadIndirect(Size, u32),
    /// `A = k`
    Immediate(u32),
    /// `A = scratch[i]`
    Recall(u8),
    /// `A =` the packet's length
    Length,
    /// `X = 4 * (packet[at] & 15)`
    HeaderLengthX(u32),
    /// `X = k`
    ImmediateX(u32),
    /// `X = scratch[i]`
    RecallX(u8),
    /// `X =` the packet's length
    LengthX,
    /// `scratch[i] = A`
    Store(u8),
    /// `scratch[i] = X`
    StoreX(u8),
    /// `A = A op k`
    AluK(Alu, u32),
    /// `A = A op X`
    AluX(Alu),
    /// `A = -A`
    Negate,
    /// `X = A`
    AToX,
    /// `A = X`
    XToA,
    /// Goes on there.
    Jump(u16),
    /// Compares `A` with `k`.
    JumpK { compare: Compare, jt: u16, jf: u16, k: u32 },
    /// Compares `A` with `X`.
    JumpX { compare: Compare, jt: u16, jf: u16 },
    /// A match unless `A` is 0.
    ReturnA,
}

/// A frame as an expression sees it: without its 802.1Q tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    frame: &'a [u8],
    /// The frame from the tag's length on: an octet's index here is its index in the untagged frame, except for the MACs'.
    body: &'a [u8],
    /// Octets of the whole untagged frame, of which a capture may have kept fewer.
    len: u32,
}

impl<'a> View<'a> {
    /// The frame as it is.
    #[inline]
    pub(super) fn whole(frame: &'a [u8]) -> View<'a> {
        View { frame, body: frame, len: frame.len() as u32 }
    }

    /// The frame without the `tag` octets that follow its MACs. It had `whole` octets, tag included, if those are more than are here.
    #[inline]
    pub(super) fn without_tag(frame: &'a [u8], tag: usize, whole: usize) -> View<'a> {
        let body = frame.get(tag..).unwrap_or_default();
        View { frame, body, len: (body.len() as u32).max(whole.saturating_sub(tag) as u32) }
    }

    #[inline]
    fn len(&self) -> u32 {
        self.len
    }

    /// `N` octets of the untagged frame.
    #[inline]
    fn octets<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at < MACS && self.frame.len() != self.body.len() {
            return self.across(at);
        }
        self.body.get(at..)?.first_chunk::<N>().copied()
    }

    /// [`View::octets`] that begin before the tag.
    #[cold]
    fn across<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut octets = [0; N];
        for (at, octet) in (at..).zip(&mut octets) {
            let from = if at < MACS { self.frame } else { self.body };
            *octet = *from.get(at)?;
        }
        Some(octets)
    }

    #[inline]
    fn load(&self, size: Size, at: usize) -> Option<u32> {
        Some(match size {
            Size::Byte => u32::from(u8::from_be_bytes(self.octets(at)?)),
            Size::Half => u32::from(u16::from_be_bytes(self.octets(at)?)),
            Size::Word => u32::from_be_bytes(self.octets(at)?),
        })
    }

    /// A masked word of the packet.
    #[inline]
    fn field(&self, at: u16, mask: u32) -> Option<u32> {
        self.octets(usize::from(at)).map(|octets| u32::from_be_bytes(octets) & mask)
    }

    /// `(masked word of the packet >> shift) + add`
    #[inline]
    fn sum(&self, at: u16, shift: u8, mask: u32, add: u32) -> Option<u32> {
        self.field(at, mask)?.checked_shr(shift.into())?.checked_add(add)
    }
}

/// A program that ends. It begins with its first instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    ops: Box<[Op]>,
    /// What [`Op::FieldIn`] looks through.
    values: Box<[u32]>,
    /// Whether it stores anything.
    stores: bool,
}

impl Program {
    /// A program of instructions that keep the module's invariants.
    pub(super) fn new(ops: Vec<Op>, values: Vec<u32>) -> Program {
        let stores = ops.iter().any(|op| matches!(op, Op::Store(_) | Op::StoreX(_) | Op::Recall(_) | Op::RecallX(_)));
        Program { ops: ops.into(), values: values.into(), stores }
    }

    pub(super) fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The verdict of a program that is nothing else.
    pub(super) fn constant(&self) -> Option<bool> {
        match *self.ops {
            [Op::Jump(ACCEPT)] => Some(true),
            [Op::Jump(REJECT)] => Some(false),
            _ => None,
        }
    }

    /// Whether the packet matches.
    #[inline]
    pub(super) fn run(&self, packet: &View<'_>) -> bool {
        let mut at = 0;
        // Most programs are nothing but these: this loop has no registers to keep.
        while let Some(op) = self.ops.get(usize::from(at)) {
            let (field, holds, jt, jf) = match *op {
                Op::FieldIs { at, jt, jf, mask, value } => {
                    let field = packet.field(at, mask);
                    (field, field == Some(value), jt, jf)
                }
                Op::FieldFrom { at, jt, jf, mask, value } => {
                    let field = packet.field(at, mask);
                    (field, field >= Some(value), jt, jf)
                }
                Op::FieldIn { at, jt, jf, mask, first, count } => {
                    let field = packet.field(at, mask);
                    (field, field.is_some_and(|field| self.has(first, count, field)), jt, jf)
                }
                Op::LengthIs { compare, jt, jf, k } => (Some(0), compare.holds(packet.len(), k), jt, jf),
                Op::Jump(to) => (Some(0), true, to, to),
                _ => return self.run_from(at, packet),
            };
            if field.is_none() {
                return false;
            }
            at = if holds { jt } else { jf };
        }
        at == ACCEPT
    }

    #[inline]
    fn has(&self, first: u16, count: u16, value: u32) -> bool {
        let first = usize::from(first);
        let values = self.values.get(first..first.wrapping_add(usize::from(count))).unwrap_or_default();
        // A scan of a few cache lines is quicker than a search through them.
        if values.len() <= 48 { values.contains(&value) } else { values.binary_search(&value).is_ok() }
    }

    /// [`Program::run`] from `at` on, with every instruction.
    #[inline(never)]
    fn run_from(&self, at: u16, packet: &View<'_>) -> bool {
        let end = if self.stores { self.end_from::<SCRATCH>(at, packet) } else { self.end_from::<0>(at, packet) };
        end.unwrap_or(false)
    }

    /// With `N` scratch words. None when a load leaves the packet, or for a division by zero.
    #[inline(always)]
    fn end_from<const N: usize>(&self, mut at: u16, packet: &View<'_>) -> Option<bool> {
        let (mut a, mut x) = (0u32, 0u32);
        let mut scratch = [0u32; N];
        while let Some(op) = self.ops.get(usize::from(at)) {
            let mut next = at.wrapping_add(1);
            match *op {
                Op::FieldIs { at, jt, jf, mask, value } => {
                    next = if packet.field(at, mask)? == value { jt } else { jf };
                }
                Op::FieldFrom { at, jt, jf, mask, value } => {
                    next = if packet.field(at, mask)? >= value { jt } else { jf };
                }
                Op::FieldIn { at, jt, jf, mask, first, count } => {
                    next = if self.has(first, count, packet.field(at, mask)?) { jt } else { jf };
                }
                Op::LengthIs { compare, jt, jf, k } => next = if compare.holds(packet.len(), k) { jt } else { jf },
                Op::Field { at, shift, mask, add } => a = packet.sum(at, shift, mask, add)?,
                Op::FieldX { at, shift, mask, add } => x = packet.sum(at, shift, mask, add)?,
                Op::LoadBehind { size, at, shift, mask, add } => {
                    a = packet.load(size, usize::try_from(packet.sum(at, shift, mask, add)?).ok()?)?;
                }
                Op::Load(size, at) => a = packet.load(size, usize::try_from(at).ok()?)?,
                Op::LoadIndirect(size, k) => {
                    a = packet.load(size, usize::try_from(x.checked_add(k)?).ok()?)?;
                }
                Op::Immediate(k) => a = k,
                Op::Recall(i) => a = *scratch.get(usize::from(i))?,
                Op::Length => a = packet.len(),
                Op::HeaderLengthX(at) => {
                    let octet = packet.load(Size::Byte, usize::try_from(at).ok()?)?;
                    x = (octet & 15) << 2;
                }
                Op::ImmediateX(k) => x = k,
                Op::RecallX(i) => x = *scratch.get(usize::from(i))?,
                Op::LengthX => x = packet.len(),
                Op::Store(i) => *scratch.get_mut(usize::from(i))? = a,
                Op::StoreX(i) => *scratch.get_mut(usize::from(i))? = x,
                Op::AluK(alu, k) => a = alu.apply(a, k)?,
                Op::AluX(alu) => a = alu.apply(a, x)?,
                Op::Negate => a = a.wrapping_neg(),
                Op::AToX => x = a,
                Op::XToA => a = x,
                Op::Jump(to) => next = to,
                Op::JumpK { compare, jt, jf, k } => next = if compare.holds(a, k) { jt } else { jf },
                Op::JumpX { compare, jt, jf } => next = if compare.holds(a, x) { jt } else { jf },
                Op::ReturnA => return Some(a != 0),
            }
            at = next;
        }
        Some(at == ACCEPT)
    }

    /// Decodes and validates a program; see the module's invariants.
    pub(super) fn decode(instructions: &[Instruction]) -> Result<Program, ProgramError> {
        let len = instructions.len();
        if len > MAX_INSTRUCTIONS {
            return Err(ProgramError::TooLong(len));
        }
        let last = instructions.last().ok_or(ProgramError::Empty)?;
        let ops: Vec<Op> = instructions
            .iter()
            .enumerate()
            .map(|(at, instruction)| decode_one(at, instruction, len))
            .collect::<Result<_, _>>()?;
        if last.code & 7 != 6 {
            return Err(ProgramError::NoReturn);
        }
        Ok(Program::new(ops, Vec::new()))
    }
}

/// `len` is the program's. Codes as in `<pcap/bpf.h>`: class in the low three bits.
fn decode_one(at: usize, instruction: &Instruction, len: usize) -> Result<Op, ProgramError> {
    let &Instruction { code, jt, jf, k } = instruction;
    let unknown = ProgramError::UnknownCode { at, code };
    let scratch = || u8::try_from(k).ok().filter(|&i| usize::from(i) < SCRATCH).ok_or(ProgramError::Scratch(at));
    let target = |offset: u32| {
        let to = usize::try_from(offset).ok().and_then(|offset| at.checked_add(1)?.checked_add(offset));
        let to = to.filter(|&to| to < len).and_then(|to| u16::try_from(to).ok());
        to.ok_or(ProgramError::Jump(at))
    };
    Ok(match code {
        0x00 => Op::Immediate(k),
        0x20 => Op::Load(Size::Word, k),
        0x28 => Op::Load(Size::Half, k),
        0x30 => Op::Load(Size::Byte, k),
        0x40 => Op::LoadIndirect(Size::Word, k),
        0x48 => Op::LoadIndirect(Size::Half, k),
        0x50 => Op::LoadIndirect(Size::Byte, k),
        0x60 => Op::Recall(scratch()?),
        0x80 => Op::Length,
        0x01 => Op::ImmediateX(k),
        0x61 => Op::RecallX(scratch()?),
        0x81 => Op::LengthX,
        0xb1 => Op::HeaderLengthX(k),
        0x02 => Op::Store(scratch()?),
        0x03 => Op::StoreX(scratch()?),
        0x84 => Op::Negate,
        0x05 => Op::Jump(target(k)?),
        0x06 => Op::Jump(if k == 0 { REJECT } else { ACCEPT }),
        0x16 => Op::ReturnA,
        0x07 => Op::AToX,
        0x87 => Op::XToA,
        _ if code & !0xf8 == 4 => {
            let alu = match code >> 4 {
                0x0 => Alu::Add,
                0x1 => Alu::Sub,
                0x2 => Alu::Mul,
                0x3 => Alu::Div,
                0x4 => Alu::Or,
                0x5 => Alu::And,
                0x6 => Alu::Lsh,
                0x7 => Alu::Rsh,
                0x9 => Alu::Mod,
                0xa => Alu::Xor,
                _ => return Err(unknown),
            };
            if code & 8 == 0 { Op::AluK(alu, k) } else { Op::AluX(alu) }
        }
        _ if code & !0xf8 == 5 => {
            let compare = match code >> 4 {
                1 => Compare::Equal,
                2 => Compare::Greater,
                3 => Compare::AtLeast,
                4 => Compare::AnyBit,
                _ => return Err(unknown),
            };
            let (jt, jf) = (target(jt.into())?, target(jf.into())?);
            if code & 8 == 0 { Op::JumpK { compare, jt, jf, k } } else { Op::JumpX { compare, jt, jf } }
        }
        _ => return Err(unknown),
    })
}
