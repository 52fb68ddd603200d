//! A freeze, as an agent hears of it: "do not dispatch new work here".

use muster_common::time::Timestamp;
use serde::{Deserialize, Serialize};

/// It holds until it ends or is lifted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freeze {
    /// The coordinator's name for it.
    pub id: String,
    /// Why.
    pub reason: String,
    /// Who.
    pub created_by: String,
    /// When it ends by itself, by the coordinator's clock; `None`: when it is lifted.
    pub expires: Option<Timestamp>,
}

impl Freeze {
    /// For people.
    pub fn words(&self) -> String {
        let until = self.expires.map(|until| format!(" until {}", until.to_utc_minute())).unwrap_or_default();
        format!("{} (by {}{until}, {})", self.reason, self.created_by, self.id)
    }
}
