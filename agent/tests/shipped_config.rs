//! The agent's config that is shipped with the units passes, as it is and with every example line in force.

use muster_agent::config::Config;

#[test]
fn the_shipped_config_passes() {
    let text = include_str!("../../systemd/config/agent.toml");
    let config = Config::parse("agent.toml", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert!(config.services.is_empty() && config.endpoints.is_empty());

    // An example is a comment that begins with a table or a key.
    let is_example = |line: &str| line.starts_with("# [") || line.starts_with("# ") && line.contains(" = ");
    let uncomment = |line: &str| if is_example(line) { line.replacen("# ", "", 1) } else { line.to_owned() };
    let text = text.lines().map(uncomment).collect::<Vec<_>>().join("\n");
    let config = Config::parse("agent.toml", &text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!((config.services.len(), config.endpoints.len()), (1, 2));
}
