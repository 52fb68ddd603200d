//! Where the coordinator is and who we are: flags and environment first, then the config file, then the local socket.

use crate::args::Target;
use crate::error::CtlError;
use muster_common::config::read;
use std::path::{Path, PathBuf};

/// The local coordinator's socket, as in its default config.
pub(crate) const SOCKET_DEFAULT: &str = "/run/muster/coordinator.sock";
/// The endpoint, where no flag says another.
const ENDPOINT_VARIABLE: &str = "MUSTER_ENDPOINT";
/// Who uses the account, where no flag says it: set by people, and by sudo.
const SAID_VARIABLES: [&str; 2] = ["MUSTER_AS", "SUDO_USER"];
/// The config of the whole host.
const CONFIG_SYSTEM: &str = "/etc/muster/ctl.toml";

/// Where to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Settings {
    /// A Unix socket; the kernel tells the coordinator who we are.
    Socket {
        /// Where.
        path: PathBuf,
        /// Who uses its account, by their own word.
        said: Option<String>,
    },
    /// mTLS.
    Endpoint {
        /// `https://host:port`.
        url: String,
        /// The fleet's CA.
        ca: PathBuf,
        /// Our certificate.
        cert: PathBuf,
        /// Our key.
        key: PathBuf,
    },
}

/// Decides where to connect.
pub(crate) fn resolve(flags: &Target) -> Result<Settings, CtlError> {
    let file = match &flags.config {
        Some(path) => read_file(path)?,
        None => match default_config() {
            Some(path) => read_file(&path)?,
            None => Target::default(),
        },
    };
    let mut flags = flags.clone();
    if flags.endpoint.is_none() && flags.socket.is_none() {
        flags.endpoint = std::env::var(ENDPOINT_VARIABLE).ok().filter(|url| !url.is_empty());
    }
    let chosen = choose(&flags, &file, Path::new(SOCKET_DEFAULT).exists())?;
    Ok(match chosen {
        Settings::Socket { path, said: None } => Settings::Socket { path, said: said() },
        chosen => chosen,
    })
}

/// Who uses the account, as the environment tells it.
fn said() -> Option<String> {
    SAID_VARIABLES.iter().find_map(|name| std::env::var(name).ok().filter(|said| !said.is_empty()))
}

fn choose(flags: &Target, file: &Target, has_local_socket: bool) -> Result<Settings, CtlError> {
    let over = |socket: &Path| Settings::Socket { path: socket.to_owned(), said: flags.said.clone() };
    if let Some(socket) = &flags.socket {
        return Ok(over(socket));
    }
    let from_file = file.socket.is_none().then_some(file.endpoint.as_ref()).flatten();
    let Some(url) = flags.endpoint.as_ref().or(from_file) else {
        return match &file.socket {
            Some(socket) => Ok(over(socket)),
            None if has_local_socket => Ok(over(Path::new(SOCKET_DEFAULT))),
            None => Err(CtlError::Usage(format!(
                "no coordinator to ask: give --endpoint https://HOST:7420 with --ca, --cert and --key, \
                 or write them into {CONFIG_SYSTEM} (there is no local socket {SOCKET_DEFAULT})"
            ))),
        };
    };
    if flags.said.is_some() {
        return Err(CtlError::Usage(format!(
            "--as is for the local socket: to {url} your certificate says who you are"
        )));
    }
    if !url.starts_with("https://") {
        let host = url.rsplit_once("://").map_or(url.as_str(), |(_, host)| host);
        return Err(CtlError::Usage(format!("{url:?} is not an endpoint: expected \"https://{host}\"")));
    }
    let pick = |flag: &Option<PathBuf>, file: &Option<PathBuf>, name: &str| {
        let missing = || CtlError::Usage(format!("{url} needs your certificate: give --{name} or set it in ctl.toml"));
        flag.clone().or_else(|| file.clone()).ok_or_else(missing)
    };
    Ok(Settings::Endpoint {
        url: url.clone(),
        ca: pick(&flags.ca, &file.ca, "ca")?,
        cert: pick(&flags.cert, &file.cert, "cert")?,
        key: pick(&flags.key, &file.key, "key")?,
    })
}

fn default_config() -> Option<PathBuf> {
    let config_home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config_home = config_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let own = config_home.map(|home| home.join("muster/ctl.toml"));
    own.into_iter().chain([PathBuf::from(CONFIG_SYSTEM)]).find(|path| path.exists())
}

fn read_file(path: &Path) -> Result<Target, CtlError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| CtlError::ReadConfig { path: path.to_owned(), source })?;
    parse(&path.display().to_string(), &text)
}

fn parse(name: &str, text: &str) -> Result<Target, CtlError> {
    let walk = |root: &muster_common::config::Reader<'_>| {
        let path = |key: &str| root.string(key).map(PathBuf::from);
        Target {
            endpoint: root.string("endpoint"),
            socket: path("socket"),
            ca: path("ca"),
            cert: path("cert"),
            key: path("key"),
            said: None,
            config: None,
        }
    };
    read(name, text, walk).map_err(CtlError::Config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_socket() {
        let file =
            parse("ctl.toml", "endpoint = \"https://a:7420\"\nca = \"/ca\"\ncert = \"/c\"\nkey = \"/k\"\n").unwrap();
        let Settings::Endpoint { url, .. } = choose(&Target::default(), &file, true).unwrap() else { panic!() };
        assert_eq!(url, "https://a:7420");
        let flags = Target { endpoint: Some("https://b:7420".to_owned()), ..Target::default() };
        let Settings::Endpoint { url, key, .. } = choose(&flags, &file, true).unwrap() else { panic!() };
        assert_eq!((url.as_str(), key), ("https://b:7420", PathBuf::from("/k")));
        let flags = Target { socket: Some("/s".into()), said: Some("ann".to_owned()), ..Target::default() };
        let socket =
            |path: &str, said: Option<&str>| Settings::Socket { path: path.into(), said: said.map(str::to_owned) };
        assert_eq!(choose(&flags, &file, true).unwrap(), socket("/s", Some("ann")));
        let flags = Target { said: Some("ann".to_owned()), ..Target::default() };
        assert!(choose(&flags, &file, true).unwrap_err().to_string().contains("your certificate says who you are"));
        for wrong in ["http://b:7420", "b:7420"] {
            let flags = Target { endpoint: Some(wrong.to_owned()), ..Target::default() };
            let error = choose(&flags, &file, true).unwrap_err();
            assert!(error.to_string().contains("expected \"https://b:7420\""), "{error}");
        }
        let none = Target::default();
        assert_eq!(choose(&none, &none, true).unwrap(), socket(SOCKET_DEFAULT, None));
        assert!(choose(&none, &none, false).unwrap_err().to_string().contains("--endpoint"));
    }

    #[test]
    fn a_misspelt_key_is_told() {
        let error = parse("ctl.toml", "endpont = \"x\"\n").unwrap_err();
        assert!(error.report().contains("did you mean \"endpoint\"?"), "{}", error.report());
        assert_eq!(error.exit_status(), 2);
    }
}
