//! What was found as a config with comments, for `init`: why each subject is there, and what a person may add.
//!
//! Invariant: what is printed is read back as what was found, and every suggestion is right once its `# ` is taken away.

use super::{About, Discovered};
use crate::config::Service;
use crate::config::log::LogSource;
use muster_agent_core::port::Target;
use std::fmt::Write as _;

/// Ports of well-known protocols that are not HTTP.
const NOT_HTTP: [u16; 22] =
    [21, 22, 23, 25, 53, 110, 111, 143, 389, 465, 587, 636, 873, 993, 995, 2049, 3306, 5432, 5672, 6379, 11211, 27017];
/// Names on one line of a comment.
const LINE_BYTES: usize = 100;
/// Ports drawn at random that are named; a program may have hundreds.
const DRAWN_SHOWN_MAX: usize = 3;

const HEAD: &str = "\
# Written by `muster-agent init` from what runs on this host now. Keep what you want to be told about, rename services
# so that the same one has the same name on every host, then: muster-agent check-config
# Lines that begin with `# ` and a key are suggestions: nothing of them was found, and nothing is guessed.

[agent]
# labels = { zone = \"a\", role = \"worker\" }

# [coordinator]             # without one, findings are kept and logged here alone
# endpoints = [\"https://coord-a:7420\", \"https://coord-b:7420\"]

# [memory]                  # the defaults follow from the size of the host
# approaching = \"4GiB\"
# critical = \"2GiB\"
";

/// What any service may have beside.
const TAIL: &str = "\
# What a service may have beside:
# [service.example]
# unit = { name = \"example.service\", may_be_inactive = true, max_activating = \"5m\" }
# health = { url = \"http://127.0.0.1:8081/health\", max_latency = \"500ms\", field = { pointer = \"/status\", equals = \"ok\" } }
# sqlite = [{ path = \"/var/lib/example/hub.db\", rows = [\"jobs\"], foreign_keys = true, queries = [
#     { name = \"stuck-jobs\", sql = \"select count(*) from jobs where status = 'running' and updated_at < unixepoch() - 10800\", max = 0 },
# ] }]
# backups = [{ path = \"/var/backups/example/*.db\", of = \"/var/lib/example/hub.db\", max_age = \"26h\", keep = 7 }]
# locks = [\"/run/example/worker.lock\", { path = \"/run/example/job.lock\", max_hold = \"10m\" }]
# logs = [\"journal:example.service\", \"/var/log/example/*.log\"]
# keys = [\"/etc/example/tls.key\"]          # only it may read them
# singleton = true                         # at most one instance in the fleet
# [service.example.baseline]               # declared, to be compared with what is applied
# limits = { nofile = \"65536\" }
# unit = { Restart = \"on-failure\", MemoryMax = \"3GiB\" }
# files = [{ path = \"/etc/example/example.conf\", mode = \"0640\", owner = \"root\" }]
";

/// A config that watches what was found.
pub fn to_toml(found: &Discovered) -> String {
    let mut out = String::from(HEAD);
    for note in &found.notes {
        let _infallible = writeln!(out, "\n# note: {}", plain(note));
    }
    let nothing = About::default();
    for service in &found.services {
        write_service(&mut out, service, found.about.get(service.name.as_str()).unwrap_or(&nothing));
    }
    out.push('\n');
    out.push_str(TAIL);
    for (why, names) in &found.left_out {
        let _infallible = writeln!(out, "\n# left out, {why}:");
        write_names(&mut out, names.iter().map(|name| plain(name)));
    }
    out
}

fn write_service(out: &mut String, service: &Service, about: &About) {
    out.push('\n');
    if !about.description.is_empty() {
        let _infallible = writeln!(out, "# {}", plain(&about.description));
    }
    let mut what: Vec<String> = about.exe.iter().map(|exe| plain(&exe.display().to_string())).collect();
    what.extend(about.other_name.iter().map(|name| format!("called {}", plain(name))));
    what.extend(about.user.iter().map(|user| format!("user {}", plain(user))));
    what.extend(about.since.map(|since| format!("since {}", since.to_utc_minute())));
    if !what.is_empty() {
        let _infallible = writeln!(out, "# {}", what.join(", "));
    }
    let Service { unit, pid_file, ports, sqlite, logs, .. } = service;
    let nothing = unit.is_none() && pid_file.is_none() && ports.is_empty() && sqlite.is_empty() && logs.is_empty();
    // A table with nothing to watch is refused.
    let mark = if nothing { "# " } else { "" };
    let _infallible = writeln!(out, "{mark}[service.{}]", key(service.name.as_str()));
    if let Some(unit) = &service.unit {
        let name = quoted(&unit.name);
        if unit.may_be_inactive {
            let text = format!("{{ name = {name}, may_be_inactive = true }}");
            write_value(out, "unit", &text, "started when it is needed");
        } else {
            let why = about.down.unwrap_or("systemd tells how it starts, fails and restarts");
            write_value(out, "unit", &name, why);
        }
    }
    if let Some(pid_file) = &service.pid_file {
        let path = quoted(&pid_file.what.display().to_string());
        let gone = about.exe.is_none() && service.unit.is_none();
        let why = if gone { "no process of this pid was seen" } else { "names its main process" };
        write_value(out, "pid_file", &path, why);
    }
    let ports = service.ports.iter().map(|port| (quoted(&port.what.to_string()), "it listens there"));
    write_list(out, "ports", &ports.collect::<Vec<_>>());
    let databases = service.sqlite.iter().map(|db| (quoted(&db.path.display().to_string()), "SQLite, held open"));
    write_list(out, "sqlite", &databases.collect::<Vec<_>>());
    let logs = service.logs.iter().map(|log| {
        let why = match &log.source {
            LogSource::Journal(_) => "what it prints, and systemd about it",
            LogSource::File(path) if about.found_by_owner.contains(path) => "written by its user since it started",
            LogSource::File(_) => "it appends to it",
        };
        (quoted(&log.source.to_string()), why)
    });
    write_list(out, "logs", &logs.collect::<Vec<_>>());
    if !about.drawn_ports.is_empty() {
        let shown: Vec<String> = about.drawn_ports.iter().take(DRAWN_SHOWN_MAX).map(|port| plain(port)).collect();
        let (ports, list) = (if about.drawn_ports.len() == 1 { "port" } else { "ports" }, shown.join(", "));
        let more = about.drawn_ports.len() - shown.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let why = "in the range of ports that the kernel draws at random";
        let _infallible = writeln!(out, "# not watched: {ports} {list}{more}: {why}");
    }
    for aside in &about.asides {
        let _infallible = writeln!(out, "# not watched: {}", plain(aside));
    }
    write_suggestions(out, service, about);
}

/// Only what fits this service.
fn write_suggestions(out: &mut String, service: &Service, about: &About) {
    let name = service.name.as_str();
    let http = service.ports.iter().find_map(|port| http_address(&port.what));
    if let Some(address) = http {
        let url = quoted(&format!("http://{address}/health"));
        let _infallible = writeln!(out, "# health = {url}   # if it speaks HTTP: any 2xx is well");
    }
    for database in service.sqlite.iter().take(1) {
        let path = database.path.display().to_string();
        let copies = quoted(&format!("/var/backups/{name}/*.db"));
        let _infallible =
            writeln!(out, "# backups = [{{ path = {copies}, of = {}, max_age = \"26h\", keep = 7 }}]", quoted(&path));
    }
    if let (Some(limit), true) = (about.open_files_limit, service.unit.is_some()) {
        let _infallible =
            writeln!(out, "# baseline = {{ limits = {{ nofile = \"{limit}\" }} }}   # the limit it has now");
    }
}

/// Where this host would ask, when the port may speak HTTP.
fn http_address(target: &Target) -> Option<String> {
    let text = target.to_string();
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| !NOT_HTTP.contains(port))?;
    let host = match host {
        "unix" => return None,
        "*" | "0.0.0.0" | "[::]" => "127.0.0.1",
        host => host,
    };
    Some(format!("{host}:{port}"))
}

fn write_value(out: &mut String, key: &str, value: &str, why: &str) {
    let _infallible = writeln!(out, "{key} = {value}   # {why}");
}

/// On one line where it fits, else one item a line; the same reason is said once.
fn write_list(out: &mut String, key: &str, items: &[(String, &'static str)]) {
    let Some((_, first_why)) = items.first() else { return };
    let values: Vec<&str> = items.iter().map(|(value, _)| value.as_str()).collect();
    let line = format!("[{}]", values.join(", "));
    if items.iter().all(|(_, why)| why == first_why) && line.len() <= LINE_BYTES {
        write_value(out, key, &line, first_why);
        return;
    }
    let _infallible = writeln!(out, "{key} = [");
    for (value, why) in items {
        let _infallible = writeln!(out, "    {value},   # {why}");
    }
    out.push_str("]\n");
}

fn write_names(out: &mut String, names: impl Iterator<Item = String>) {
    let mut line = String::new();
    for name in names {
        if line.len() + name.len() > LINE_BYTES {
            let _infallible = writeln!(out, "#     {line},");
            line.clear();
        }
        if !line.is_empty() {
            line.push_str(", ");
        }
        line.push_str(&name);
    }
    let _infallible = writeln!(out, "#     {line}");
}

/// Bare where TOML allows it.
fn key(name: &str) -> String {
    let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { name.to_owned() } else { quoted(name) }
}

fn quoted(text: &str) -> String {
    ::toml::Value::String(text.to_owned()).to_string()
}

/// A name of a stranger must not end its comment.
fn plain(text: &str) -> String {
    crate::doctor::text::plain(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn suggestions_are_right_once_they_are_wanted() {
        let text =
            "[service.web]\nunit = \"web.service\"\nports = [\"0.0.0.0:8080\"]\nsqlite = [\"/srv/web/hub.db\"]\n";
        let config = Config::parse("agent.toml", text).unwrap();
        let about = About { open_files_limit: Some(1024), description: "a\nb".into(), ..About::default() };
        let found = Discovered {
            services: config.services.clone(),
            about: std::iter::once(("web".to_owned(), about)).collect(),
            ..Discovered::default()
        };
        let printed = to_toml(&found);
        assert_eq!(Config::parse("agent.toml", &printed).unwrap().services, config.services, "{printed}");

        let prose = ["# Written by", "# so that", "# Lines that", "# What a service", "# a\\nb"];
        let wanted: Vec<&str> = printed
            .lines()
            .map(|line| if prose.iter().any(|begin| line.starts_with(begin)) { "" } else { line })
            .map(|line| line.strip_prefix("# ").unwrap_or(line))
            .collect();
        let wanted = wanted.join("\n");
        let config = Config::parse("agent.toml", &wanted).unwrap_or_else(|error| panic!("{error}\n{wanted}"));
        let [web, example] = config.services.as_slice() else { panic!("{wanted}") };
        assert_eq!(web.health[0].url, "http://127.0.0.1:8080/health");
        assert_eq!((web.backups.len(), web.baseline.limits["nofile"].as_str()), (1, "1024"));
        assert!(example.singleton && example.sqlite[0].queries.len() == 1 && example.locks.len() == 2);
    }

    #[test]
    fn long_lists_take_a_line_for_each() {
        let mut out = String::new();
        write_list(&mut out, "ports", &[("\"a\"".into(), "x"), ("\"b\"".into(), "x")]);
        write_list(&mut out, "logs", &[("\"a\"".into(), "x"), ("\"b\"".into(), "y")]);
        assert_eq!(out, "ports = [\"a\", \"b\"]   # x\nlogs = [\n    \"a\",   # x\n    \"b\",   # y\n]\n");
        assert_eq!(http_address(&"127.0.0.1:6379".parse().unwrap()), None);
        assert_eq!(http_address(&"*:80".parse().unwrap()).as_deref(), Some("127.0.0.1:80"));
    }
}
