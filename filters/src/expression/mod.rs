//! tcpdump expressions as conditions on a frame: compiled by libpcap once, executed here for every packet.
//!
//! libpcap turns the text into classic BPF; [`Expression::matches`] runs that program and gives libpcap's verdict on every
//! frame. A frame that the parser accepted as TCP has told much already, so [`Expression::matches_segment`] runs what is
//! left of the program for its IP version once all that is settled.
//!
//! Invariants: an expression sees a frame without its 802.1Q tag and with its Ethernet padding; both ways give the same
//! verdict on a frame that the parser accepted; a verdict takes at most one step for each of the program's instructions.
//! pcap-filter(7).

// This and `text` run when a configuration is read, never on a packet.
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod fold;
mod machine;
#[cfg(test)]
mod tests;
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod text;

use std::sync::{Mutex, PoisonError};

use pcap::{Capture, Linktype};

use self::fold::{Facts, fold, reads_unwritten};
use self::machine::{Instruction, MAX_INSTRUCTIONS, Program, ProgramError, View};
use crate::packet::Segment;

/// The longest text taken, octets.
pub const MAX_TEXT: usize = 16 * 1024;

/// libpcap's compiler shares state between threads before 1.8, and its lookups of service names may on some systems.
static COMPILER: Mutex<()> = Mutex::new(());

/// Why an expression is refused, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// Nothing but blanks, which libpcap takes for "everything".
    #[error("an empty expression; say what shall match, or leave the key out to match everything")]
    Empty,
    /// A text of this length.
    #[error("an expression of {0} octets; at most {max} are taken: put addresses into a set", max = MAX_TEXT)]
    TooLong(usize),
    /// This many words beside `and`, `or` and `not`.
    #[error("an expression of {0} words; at most {max} are taken: put addresses into a set", max = text::MAX_WORDS)]
    TooManyWords(usize),
    /// A zero octet in the text.
    #[error("the expression holds a zero octet; write a filter as for tcpdump, see pcap-filter(7)")]
    Nul,
    /// A word that libpcap would look up.
    #[error(
        "'{0}' is a name, and none but those of ports and protocols are looked up; write the address or number (and blanks \
         around a minus sign), see pcap-filter(7)"
    )]
    Name(String),
    /// A keyword about what the frame is wrapped in.
    #[error(
        "'{0}' cannot match: expressions see plain frames, without their 802.1Q tag; leave it out (a port's VLAN belongs to \
         the port's configuration)"
    )]
    Envelope(String),
    /// A keyword about something that is not in the frame.
    #[error("'{0}' cannot match: it asks for what a capture knows and a frame does not hold; leave it out")]
    Capture(String),
    /// What libpcap says.
    #[error("{0}; write a filter as for tcpdump, see pcap-filter(7)")]
    Pcap(String),
    /// A program of this many instructions, before libpcap shortens it.
    #[error("the expression takes {0} instructions; at most {max} are taken: put addresses into a set", max = MAX_INSTRUCTIONS)]
    TooManyInstructions(usize),
    /// A program with a loop: libpcap writes one for `protochain` alone.
    #[error("the expression needs a loop, as 'protochain' does; test 'proto' instead")]
    Loop,
    /// A program that libpcap does not write.
    #[error("libpcap's program is not valid ({0}); write a simpler filter, or use another libpcap")]
    Program(String),
}

/// A compiled tcpdump expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    general: Program,
    /// What is left of it for TCP in IPv4 and in IPv6.
    v4: Program,
    v6: Program,
}

impl Expression {
    /// Compiles an expression for Ethernet. Names of ports and protocols are looked up in the system's files (`port http`);
    /// names of hosts and networks never are.
    ///
    /// ```
    /// use sluice_filters::{Expression, testkit};
    ///
    /// let expression = Expression::compile("tcp dst port 443 and src net 192.0.2.0/24")?;
    /// assert!(expression.matches(&testkit::tcp("192.0.2.7:40000", "198.51.100.10:443").build()));
    /// assert!(!expression.matches(&testkit::tcp("203.0.113.7:40000", "198.51.100.10:443").build()));
    /// # Ok::<(), sluice_filters::expression::ExpressionError>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong, in libpcap's words where it is libpcap that says so, and a remedy.
    pub fn compile(text: &str) -> Result<Expression, ExpressionError> {
        if text.len() > MAX_TEXT {
            return Err(ExpressionError::TooLong(text.len()));
        }
        if text.contains('\0') {
            return Err(ExpressionError::Nul);
        }
        if text.trim().is_empty() {
            return Err(ExpressionError::Empty);
        }
        text::check(text)?;
        // In this order: the optimiser takes minutes over what is refused here.
        let plain = program(text, false)?;
        let optimised = program(text, true)?;
        // It has been seen to drop a store that is still needed; bpf_filter then reads whatever lies there.
        let general = if reads_unwritten(&optimised) { plain } else { optimised };
        let (v4, v6) = (fold(&general, &Facts::v4()), fold(&general, &Facts::v6()));
        Ok(Expression { text: text.to_owned(), general, v4, v6 })
    }

    /// The expression as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether an untagged frame matches, whatever it holds: libpcap's verdict.
    #[must_use]
    pub fn matches(&self, frame: &[u8]) -> bool {
        self.general.run(&View::whole(frame))
    }

    /// Whether a frame that the parser accepted as this segment matches: libpcap's verdict on the frame without its 802.1Q
    /// tag. Given another frame, some verdict.
    #[inline]
    #[must_use]
    pub fn matches_segment(&self, frame: &[u8], segment: &Segment) -> bool {
        let program = if segment.is_v4() { &self.v4 } else { &self.v6 };
        program.run(&View::without_tag(frame, segment.l3().saturating_sub(14), segment.end()))
    }

    /// The verdict on every TCP segment in IPv4, when there is but one: `udp` matches none, `ip` all.
    #[must_use]
    pub fn constant_v4(&self) -> Option<bool> {
        self.v4.constant()
    }

    /// The verdict on every TCP segment in IPv6, when there is but one.
    #[must_use]
    pub fn constant_v6(&self) -> Option<bool> {
        self.v6.constant()
    }
}

/// libpcap's program for a text, decoded.
fn program(text: &str, optimise: bool) -> Result<Program, ExpressionError> {
    Program::decode(&libpcap(text, optimise)?).map_err(|error| match error {
        ProgramError::TooLong(len) => ExpressionError::TooManyInstructions(len),
        ProgramError::Jump(_) => ExpressionError::Loop,
        error => ExpressionError::Program(error.to_string()),
    })
}

fn libpcap(text: &str, optimise: bool) -> Result<Vec<Instruction>, ExpressionError> {
    let said = |error: pcap::Error| match error {
        pcap::Error::PcapError(said) => ExpressionError::Pcap(said),
        error => ExpressionError::Pcap(error.to_string()),
    };
    let _turn = COMPILER.lock().unwrap_or_else(PoisonError::into_inner);
    let program = Capture::dead(Linktype::ETHERNET).and_then(|dead| dead.compile(text, optimise)).map_err(said)?;
    let read = |instruction: &pcap::BpfInstruction| {
        // The fields are private; their text is all there is: code, jt, jf and k in decimal.
        let line = instruction.to_string();
        let mut numbers = line.split(' ').map(|number| number.parse::<u32>().ok());
        let mut next = || numbers.next().flatten();
        Some(Instruction {
            code: next()?.try_into().ok()?,
            jt: next()?.try_into().ok()?,
            jf: next()?.try_into().ok()?,
            k: next()?,
        })
    };
    let instructions: Option<Vec<_>> = program.get_instructions().iter().map(read).collect();
    instructions.ok_or_else(|| ExpressionError::Program("an instruction that cannot be read".to_owned()))
}
