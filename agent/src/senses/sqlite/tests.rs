//! The probe from within: what it may open where, and what it remembers.

use super::*;

#[test]
fn what_is_saved_comes_back_and_nonsense_is_ignored() {
    let new = || SqliteProbe::new(ServiceName::host(), PathBuf::from("/x.db"), SqliteOptions::default());
    let mut probe = new();
    probe.memory.inode = Some(7);
    let mut next = new();
    next.restore(probe.save().unwrap());
    assert_eq!(next.memory, probe.memory);
    next.restore(serde_json::json!("nonsense"));
    assert_eq!(next.memory.inode, Some(7));
}
