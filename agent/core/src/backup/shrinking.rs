//! Copies that are good one by one and lose little by little what no single one of them lost.

use super::{ACCEPTED_AFTER, BackupJudge, Known, LOST_BYTES_MIN, LOST_ROWS_MIN, Rules, Verdict, is_less};

/// Of one size: the last of them has no less than this share of the largest of them. What shrinks slower than this from
/// one to the last loses too little to be told while it is remembered.
const LEVEL_PERCENT: u64 = 99;

/// Good copies that lost little by little.
pub(super) struct Shrinking<'a> {
    pub(super) newest: &'a Known,
    pub(super) largest: &'a Known,
    /// Rows or bytes.
    pub(super) now: u64,
    pub(super) before: u64,
    pub(super) by_rows: bool,
}

impl BackupJudge {
    /// Whether good copies lose little by little what no single one of them lost. A step that is large by itself is for
    /// `min_percent` to judge, and so many copies of one size are a size that somebody wants.
    pub(super) fn shrinking(&self, rules: &Rules) -> Option<Shrinking<'_>> {
        let mut good = self.copies.iter().rev().filter(|known| known.verdict == Verdict::Good);
        let newest = good.next()?;
        let content = newest.content.as_ref()?;
        let by_rows = content.row_count.is_some();
        let amount = |known: &Known| match known.content.as_ref()? {
            of if by_rows => of.row_count,
            of => (of.kind == content.kind).then_some(known.file.size_bytes),
        };
        let less = |now: u64, before: u64| is_less(now, before, rules.min_percent_over_time);
        let now = amount(newest)?;
        let mut amounts = vec![now];
        let mut largest = (newest, now);
        for known in good {
            let (Some(before), Some(after)) = (amount(known), amounts.last().copied()) else { continue };
            if less(after, before) {
                break;
            }
            amounts.push(before);
            if before > largest.1 {
                largest = (known, before);
            }
            let lately = amounts.get(amounts.len().saturating_sub(ACCEPTED_AFTER)..).unwrap_or_default();
            let most = lately.iter().max().copied().unwrap_or(0);
            if lately.len() == ACCEPTED_AFTER && lately.first().is_some_and(|last| !is_less(*last, most, LEVEL_PERCENT))
            {
                break;
            }
        }
        let lost_min = if by_rows { LOST_ROWS_MIN } else { LOST_BYTES_MIN };
        let (largest, before) = largest;
        let lost = less(now, before) && before - now >= lost_min;
        lost.then_some(Shrinking { newest, largest, now, before, by_rows })
    }
}
