//! The config with its secrets removed. Comments go too: nobody knows what is in them.

use muster_agent_core::log::{names_secret, redact};
use toml::{Table, Value};

/// What stands in place of a secret.
const MARK: &str = "***";

/// The config as it was understood.
pub(super) fn clean(text: &str) -> Result<String, String> {
    // Its own words could quote a secret.
    let mut table: Table =
        text.parse().map_err(|_| "it is no TOML: `muster-agent check-config` tells why".to_owned())?;
    clean_table(&mut table);
    toml::to_string_pretty(&table).map_err(|error| error.to_string())
}

fn clean_table(table: &mut Table) {
    for (key, value) in table {
        match value {
            // Headers of a request: whoever needs one in a config needs it to be let in.
            Value::Table(headers) if key == "headers" => {
                headers.iter_mut().for_each(|(_, value)| *value = Value::String(MARK.to_owned()));
            }
            _ => clean_value(names_secret(key), value),
        }
    }
}

/// `is_secret`: its name says so. Tables within have names of their own.
fn clean_value(is_secret: bool, value: &mut Value) {
    match value {
        Value::String(text) => *text = clean_string(is_secret, text),
        Value::Array(list) => list.iter_mut().for_each(|value| clean_value(is_secret, value)),
        Value::Table(table) => clean_table(table),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) if is_secret => {
            *value = Value::String(MARK.to_owned());
        }
        _ => {}
    }
}

fn clean_string(is_secret: bool, text: &str) -> String {
    // `key = "/etc/muster/key.pem"` is where a secret is, not what it is.
    if is_secret && !text.starts_with('/') {
        return MARK.to_owned();
    }
    if text.contains("-----BEGIN ") {
        return MARK.to_owned();
    }
    text.lines().map(redact).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_and_paths_and_statements_stay() {
        let text = r#"
# token hunter2
[coordinator]
key = "/etc/muster/key.pem"
[service.spl]
keys = ["/etc/spl/key.pem"]
health = { url = "https://bob:hunter2@127.0.0.1/h?token=hunter2", headers = { Authorization = "Bearer hunter2", X-Vault = "hunter2" } }
password = """
hunter2
x"""
pin = "-----BEGIN PRIVATE KEY-----\nhunter2\n"
secret_number = 4711
sqlite = [{ path = "/a.db", queries = [{ name = "stuck", sql = "select count(*) from job where status = 'running'" }] }]
"#;
        let clean = clean(text).unwrap();
        assert!(!clean.contains("hunter2") && !clean.contains("4711"), "{clean}");
        for kept in ["/etc/muster/key.pem", "/etc/spl/key.pem", "https://bob:***@127.0.0.1/h", "status = 'running'"] {
            assert!(clean.contains(kept), "{kept} is not in:\n{clean}");
        }
        assert!(clean.parse::<Table>().is_ok());
        assert!(!super::clean("password = hunter2").unwrap_err().contains("hunter2"));
    }
}
