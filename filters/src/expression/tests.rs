//! The machine against a plain reading of BPF, on programs that no compiler would write.
