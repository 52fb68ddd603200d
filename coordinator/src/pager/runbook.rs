//! Where a page sends whoever it wakes: the command that shows the runbook anywhere, and its address where the runbooks
//! are published (`[runbooks]` of the config).

use super::config::parse_url;
use muster_common::config::Reader;
use muster_common::reason::Reason;

/// Stands for the reason code in the address.
const PLACE: &str = "{reason}";
/// Longest address; every receiver takes as much.
const URL_BYTES_MAX: usize = 512;
/// Letters that a URL may hold and that would end the link in a message.
const UNLINKABLE: &[char] = &['|', '"', '\'', '<', '>', '`'];

/// `[runbooks] url`: an address with a place for the reason code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunbookUrl(String);

impl RunbookUrl {
    /// Takes what may stand in a message as it is, and leads somewhere else for each reason.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("expected a URL with {PLACE} in it, such as \"https://wiki.example/muster/{PLACE}\"");
        if !text.contains(PLACE) || text.len() > URL_BYTES_MAX || text.contains(UNLINKABLE) {
            return Err(expected());
        }
        let url = Self(text.to_owned());
        if url.of(Reason::ProcessDown).contains(['{', '}']) {
            return Err(expected());
        }
        parse_url(&url.of(Reason::ProcessDown)).map(|_| url)
    }

    /// The runbook of one reason. Reason codes are lower-case words: nothing has to be escaped.
    pub fn of(&self, reason: Reason) -> String {
        self.0.replace(PLACE, reason.as_str())
    }
}

/// What shows the runbook without a network, wherever `musterctl` is.
pub fn command(reason: Reason) -> String {
    format!("musterctl runbook {reason}")
}

/// Reads `[runbooks]`; mistakes are noted in the reader.
pub fn read_runbooks(root: &Reader<'_>) -> Option<RunbookUrl> {
    root.table("runbooks")?.required("url")?.parsed(RunbookUrl::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_place_for_the_reason() {
        let url = RunbookUrl::parse("https://wiki.example/muster/{reason}.html?from=page&team=db#{reason}").unwrap();
        let expected = "https://wiki.example/muster/oom_kill.html?from=page&team=db#oom_kill";
        assert_eq!(url.of(Reason::OomKill), expected);
        for bad in [
            "https://wiki.example/muster/",
            "wiki.example/{reason}",
            "ftp://wiki.example/{reason}",
            "https://u:p@wiki.example/{reason}",
            "https://wiki.example/{reason}|click",
            "https://wiki.example/{reason}>",
            "https://wiki.example/{reason} x",
            "https://wiki.example/{code}/{reason}",
        ] {
            assert!(RunbookUrl::parse(bad).is_err(), "{bad}");
        }
        assert!(RunbookUrl::parse(&format!("https://w/{}{{reason}}", "x".repeat(URL_BYTES_MAX))).is_err());
    }
}
