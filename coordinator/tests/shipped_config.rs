//! The coordinator's config that is shipped with the units passes, as it is and with every example line in force.

use muster_coordinator::config::parse;

#[test]
fn the_shipped_config_passes() {
    let text = include_str!("../../systemd/config/coordinator.toml");
    let config = parse("coordinator.toml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert!(config.receivers.is_empty(), "nobody is paged before somebody says whom");

    // An example is a comment that begins with a key or a table.
    let is_example = |line: &str| line.starts_with("# [") || line.starts_with("# ") && line.contains(" = ");
    let uncomment = |line: &str| if is_example(line) { line.replacen("# ", "", 1) } else { line.to_owned() };
    let text = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let config = parse("coordinator.toml", &text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let names: Vec<_> = config.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
    assert_eq!(names, ["oncall", "am", "chat", "mail", "ops"]);
}
