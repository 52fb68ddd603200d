//! Takes secrets out of whole texts: what [`redact`] does for a line, and keys that span lines.

use crate::log::redact;
use serde_json::Value;

const KEY_BEGIN: &str = "-----BEGIN ";
const KEY_END: &str = "-----END ";
/// A key or certificate has fewer lines; one that never ends must not swallow the rest of a log.
const KEY_LINES_MAX: usize = 256;
/// What stands in place of the lines of a key.
const MARK: &str = "***";
/// Names of values that are codes, numbers and names of this program, and must be read back as they are.
const CODES: [&str; 9] = ["service", "probe", "reason", "severity", "grade", "relation", "verdict", "time", "id"];

/// The text, line by line, without its secrets. A key whose begin was cut away goes too.
///
/// ```
/// use muster_agent_core::bundle::clean_text;
/// let text = "a\n-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\npassword=hunter2\n";
/// assert_eq!(clean_text(text), "a\n***\n***\npassword=***\n");
/// assert_eq!(clean_text("MIIE\n-----END PRIVATE KEY-----\nb\n"), "***\nb\n");
/// ```
pub fn clean_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // Lines of the key that is open.
    let mut within: Option<usize> = None;
    let mut rest = text;
    if let Some(end) = text.find(KEY_END).filter(|end| text.find(KEY_BEGIN).is_none_or(|begin| begin > *end)) {
        let behind = text.get(end..).and_then(|tail| tail.find('\n')).map_or(text.len(), |line| end + line + 1);
        out.push_str(MARK);
        out.push('\n');
        rest = text.get(behind..).unwrap_or_default();
    }
    for line in rest.lines() {
        let begins = line.rfind(KEY_BEGIN).is_some_and(|begin| line.rfind(KEY_END).is_none_or(|end| end < begin));
        if let Some(lines) = within {
            within = (lines < KEY_LINES_MAX && !line.contains(KEY_END)).then_some(lines + 1);
            if within.is_none() {
                out.push_str(MARK);
                out.push('\n');
            }
            continue;
        }
        if begins {
            within = Some(0);
        }
        out.push_str(&redact(line));
        out.push('\n');
    }
    out
}

/// Every text in a JSON value, codes left as they are.
pub fn clean_json(value: &mut Value) {
    match value {
        Value::String(text) => *text = clean_words(text),
        Value::Array(list) => list.iter_mut().for_each(clean_json),
        Value::Object(map) => {
            for (_, value) in map.iter_mut().filter(|(key, _)| !CODES.contains(&key.as_str())) {
                clean_json(value);
            }
        }
        _ => {}
    }
}

/// As it is where nothing has to go: a control character is for the one who prints it.
fn clean_words(text: &str) -> String {
    let clean = clean_text(text);
    let same = |clean: &str| clean.trim_end_matches('\n') == text.trim_end_matches('\n');
    if same(&clean) || !clean.contains(MARK) { text.to_owned() } else { clean.trim_end_matches('\n').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn keys_that_span_lines_go_whole() {
        let clean = clean_text("x -----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----\ny\n");
        assert_eq!(clean, "x ***\n***\ny\n");
        let endless = format!("-----BEGIN PRIVATE KEY-----\n{}", "line\n".repeat(300));
        assert!(clean_text(&endless).ends_with("line\n"));
    }

    #[test]
    fn texts_of_a_report_lose_secrets_and_keep_codes() {
        let mut value = json!({
            "service": "sk-0123456789abcdef", "summary": "GET https://u:hunter2@h/ failed",
            "evidence": { "command": { "text": "psql password=hunter2" }, "n": { "count": 3 } },
            "next_steps": ["look at /var/log/x\n"],
        });
        clean_json(&mut value);
        assert_eq!(value["service"], "sk-0123456789abcdef");
        assert_eq!(value["summary"], "GET https://u:***@h/ failed");
        assert_eq!(value["evidence"]["command"]["text"], "psql password=***");
        assert_eq!(
            (&value["evidence"]["n"]["count"], &value["next_steps"][0]),
            (&json!(3), &json!("look at /var/log/x\n"))
        );
    }

    proptest! {
        #[test]
        fn any_text_comes_out_printable(text in any::<String>()) {
            let clean = clean_text(&text);
            prop_assert!(!clean.chars().any(|c| c.is_control() && c != '\n'));
        }

        #[test]
        fn no_line_of_a_key_survives(before in "[a-z\n]{0,40}", key in "[A-Za-z0-9+/]{64}", from in 0usize..60) {
            let text = format!("{before}\n-----BEGIN PRIVATE KEY-----\n{key}\n{key}\n-----END PRIVATE KEY-----\nend\n");
            let cut = text.get(from.min(text.len())..).unwrap_or_default();
            prop_assert!(!clean_text(cut).contains(&key), "{}", clean_text(cut));
        }
    }
}
