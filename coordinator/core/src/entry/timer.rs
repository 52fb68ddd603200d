//! The timers of State, as journaled when they run out.

use serde::{Deserialize, Serialize};

/// Which timer. Ordered, because deadlines of one moment run in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimerKey {
    /// The re-hear window after a start, a takeover or a pause is over.
    RehearOver,
    /// An incident's hold before its first page is over.
    HoldOver {
        /// Cause key.
        cause: String,
        /// Generation.
        generation: u64,
    },
    /// An incident's evidence of health has held long enough.
    StabilityOver {
        /// Cause key.
        cause: String,
        /// Generation.
        generation: u64,
    },
    /// Nobody acknowledged an incident in time.
    EscalationDue {
        /// Cause key.
        cause: String,
        /// Generation.
        generation: u64,
    },
    /// A silence begins, or is over.
    SilenceTurn {
        /// Index of the fact that made it.
        index: u64,
    },
    /// Something in a window grows old.
    WindowOver {
        /// Which window.
        window: String,
    },
    /// Its neighbours may be asked about a silent agent.
    SecondOpinionDue {
        /// Cause key.
        cause: String,
        /// Generation.
        generation: u64,
    },
    /// A cause is looked at again: what it is about may have lasted for long enough, or be over.
    SignalDue {
        /// Cause key.
        cause: String,
    },
    /// A freeze ends by itself.
    FreezeOver {
        /// Index of the fact that set it.
        index: u64,
    },
    /// A silence is over soon.
    SilenceEnds {
        /// Index of the fact that made it.
        index: u64,
    },
}
