//! Secrets as systemd gives them to a unit: files below `$CREDENTIALS_DIRECTORY`, named in the config by `credential:NAME`.

use crate::{BINARY, Fleet, NAMES, PATIENCE, Process, is, write_config};
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use muster_coordinator::failover::client::connect;
use muster_proto::v1::paging_service_client::PagingServiceClient;
use muster_proto::v1::{CoordinatorRole, TestReceiverRequest};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

const TOKEN: &str = "token-that-systemd-gave";

/// By what callers proved themselves.
type Heard = Arc<Mutex<Vec<String>>>;

async fn take(State(heard): State<Heard>, headers: HeaderMap) {
    let shown = headers.get("authorization").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    heard.lock().unwrap().push(shown.unwrap_or_default());
}

async fn receiver() -> (u16, Heard) {
    let heard = Heard::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let routes = Router::new().fallback(take).with_state(Arc::clone(&heard));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (port, heard)
}

fn run(fleet: &Fleet, port: u16, credentials: Option<&Path>) -> Process {
    let folder = fleet.dir.path().join(NAMES[0]);
    let receiver = format!(
        "[[receiver.webhook]]\nname = \"ops\"\nurl = \"http://127.0.0.1:{port}/\"\ntoken_file = \"credential:hook-token\""
    );
    let config = write_config(&folder, fleet.ports[0], &receiver);
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["run", "--config"]).arg(config).env_remove("NOTIFY_SOCKET").env_remove("CREDENTIALS_DIRECTORY");
    if let Some(folder) = credentials {
        command.env("CREDENTIALS_DIRECTORY", folder);
    }
    Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_of_the_unit_is_what_its_receiver_is_called_with() {
    let fleet = Fleet::new();
    let (port, heard) = receiver().await;
    let mut without = run(&fleet, port, None);
    let ended = tokio::task::spawn_blocking(move || without.0.wait().unwrap());
    let ended = tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(1), "without credentials it does not start");
    assert!(fleet.log(0).contains("LoadCredential"), "{}", fleet.log(0));

    let credentials = fleet.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("hook-token"), format!("{TOKEN}\n")).unwrap();
    let running = run(&fleet, port, Some(&credentials));
    fleet.until(0, "reigns", is(CoordinatorRole::Primary)).await;
    let channel = connect(&fleet.endpoint(0), &fleet.operator).await.unwrap();
    let test = TestReceiverRequest { name: "ops".into() };
    let answer = PagingServiceClient::new(channel).test_receiver(test).await.unwrap().into_inner();
    assert!(answer.delivered, "{answer:?}");
    assert_eq!(*heard.lock().unwrap(), [format!("Bearer {TOKEN}")]);
    assert!(!fleet.log(0).contains(TOKEN));
    running.kill_9();
}
