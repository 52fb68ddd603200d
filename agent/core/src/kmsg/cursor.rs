//! How far the kernel log of one boot has been read, and how many records were lost on the way.

use serde::{Deserialize, Serialize};

/// The last sequence number read; the kernel numbers records from 0 without gaps, so a jump is an exact loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    last: Option<u64>,
}

/// What a record is to a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Read before.
    Old,
    /// New; this many records between the last one and this one were overwritten before they could be read.
    New {
        /// Exact count.
        lost: u64,
    },
}

impl Cursor {
    /// A cursor that has read up to and with `sequence`.
    pub const fn at(sequence: u64) -> Self {
        Self { last: Some(sequence) }
    }

    /// The last sequence number read.
    pub const fn last(self) -> Option<u64> {
        self.last
    }

    /// Moves to `sequence`. A cursor that never read anything loses nothing: it does not know what it missed.
    pub fn see(&mut self, sequence: u64) -> Seen {
        match self.last {
            Some(last) if sequence <= last => Seen::Old,
            last => {
                let expected = last.map_or(sequence, |last| last.saturating_add(1));
                self.last = Some(sequence);
                Seen::New { lost: sequence.saturating_sub(expected) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_what_it_read_and_counts_what_it_lost() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.see(7), Seen::New { lost: 0 });
        assert_eq!(cursor.see(7), Seen::Old);
        assert_eq!(cursor.see(8), Seen::New { lost: 0 });
        assert_eq!(cursor.see(12), Seen::New { lost: 3 });
        assert_eq!(cursor.see(3), Seen::Old);
        let mut resumed = Cursor::at(100);
        assert_eq!(resumed.see(101), Seen::New { lost: 0 });
        let mut overrun = Cursor::at(100);
        assert_eq!(overrun.see(250), Seen::New { lost: 149 });
        assert_eq!(Cursor::at(u64::MAX).see(u64::MAX), Seen::Old);
    }
}
