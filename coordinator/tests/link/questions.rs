//! What is asked of agents over their streams: a diagnosis, a look at a silent neighbour; and agents that are archived.

use super::*;
use muster_coordinator_core::entry::{AgentHello, Fact, Silence};
use muster_proto::v1::port_answer::Outcome;

/// A coordinator whose silences page after twelve seconds: their neighbours are asked after six.
async fn world() -> World {
    let dir = TempDir::new().unwrap();
    ca::init(&dir.path().join("ca"), "prod").unwrap();
    let credentials = issue(dir.path(), Role::Coordinator, "coord-a");
    let text = format!(
        "[listen]\ngrpc = \"127.0.0.1:0\"\n[tls]\nca = \"/unused\"\ncert = \"/unused\"\nkey = \"/unused\"\n\
         [store]\nurl = \"sqlite:{}\"\n[incidents]\nhold = {{ sev3 = \"12s\" }}\n\
         [liveness]\nheartbeat = \"1s\"\nstale_after = 100\nreconnect_max = \"1s\"\n",
        dir.path().join("journal.db").display()
    );
    let config = config::parse("coordinator.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let coordinator = Coordinator::start(config, credentials).await.unwrap();
    // The window of the start is that of the policy before this one: another begins, of three seconds.
    coordinator.handle().submit(Fact::Paused { gap_ms: 1 }).await.unwrap();
    World { dir, coordinator }
}

/// As if `name` had connected from `address`: all agents of a test come from this very host.
async fn comes_from(world: &World, name: &str, address: &str) {
    let hello = AgentHello {
        host_name: name.to_owned(),
        agent_version: "1".to_owned(),
        os_version: String::new(),
        kernel_version: String::new(),
        boot_id: None,
        labels: Default::default(),
        peer_address: address.to_owned(),
        spool: spool(),
        listening_ports: vec![22, 443],
    };
    let fact = Fact::AgentConnected { agent: AgentName::new(name).unwrap(), hello: hello.into() };
    world.coordinator.handle().submit(fact).await.unwrap();
}

async fn falls_silent(world: &World, name: &str) {
    let agent = AgentName::new(name).unwrap();
    let fact = Fact::AgentSilent { agent, last_heard: world.coordinator.handle().now(), silence: Silence::Reset };
    world.coordinator.handle().submit(fact).await.unwrap();
}

async fn asked(agent: &mut Agent) -> v1::NeighbourQuestion {
    loop {
        if let ToAgent::Neighbour(question) = agent.next().await.unwrap() {
            return question;
        }
    }
}

/// The title of the unresolved incident about an agent's silence, once it has `words`.
async fn title(world: &World, name: &str, words: &str) -> String {
    let (key, words) = (format!("host/{name}/agent"), words.to_owned());
    let found = async {
        loop {
            let key = key.clone();
            let read = move |view: &muster_coordinator::runtime::View<'_>| {
                view.state.unresolved(&key).map(|incident| incident.title.clone())
            };
            let title = world.coordinator.handle().query(read).await.unwrap().unwrap_or_default();
            if title.contains(&words) {
                return title;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no title with {words:?}"))
}

/// Waits until the window after the start in which silences are not judged is over.
async fn judging(world: &World) {
    let over = async {
        while world.coordinator.handle().query(|view| view.state.rehear_until().is_some()).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, over).await.expect("silences are judged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbours_of_a_silent_agent_are_asked_and_the_incident_says_what_they_found() {
    let world = world().await;
    let (mut b, mut c) = (world.agent("web-b").await, world.agent("web-c").await);
    for (name, address) in [("web-a", "10.0.0.1"), ("web-b", "10.0.0.2"), ("web-c", "10.0.0.3")] {
        comes_from(&world, name, address).await;
    }
    judging(&world).await;
    falls_silent(&world, "web-a").await;
    let (of_b, of_c) = (asked(&mut b).await, asked(&mut c).await);
    assert_eq!((of_b.address.as_str(), of_b.ports.as_slice()), ("10.0.0.1", &[22, 443][..]));
    let answer = |id: u64, outcome: Outcome| {
        let ports = vec![v1::PortAnswer { port: 22, outcome: outcome.into() }];
        ToCoordinator::Neighbour(v1::NeighbourAnswer { id, ports, refused: String::new() })
    };
    // Answers to questions nobody asked, and a second one, change nothing.
    b.send(answer(of_b.id + 7, Outcome::Timeout)).await;
    b.send(answer(of_b.id, Outcome::Open)).await;
    b.send(answer(of_b.id, Outcome::Timeout)).await;
    c.send(answer(of_c.id, Outcome::Open)).await;
    let title = title(&world, "web-a", "the host answers on 22 from 2 peers").await;
    assert!(title.contains("its agent is down"), "{title}");
    assert_eq!((journaled(&world, "second_opinion_wanted"), journaled(&world, "second_opinion")), (1, 1));
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_are_none_are_no_hello() {
    let world = World::new().await;
    let channel = world.channel(Role::Agent, "web-1").await;
    for (ports, words) in [(vec![0], "no port"), (vec![65_536], "no port"), (vec![22; 9], "at most 8")] {
        let hello = v1::Hello { listening_ports: ports, ..hello() };
        let mut agent = Agent::open(channel.clone(), ToCoordinator::Hello(hello)).await.unwrap();
        let status = agent.refused().await;
        assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{status}");
    }
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diagnosis_is_asked_for_over_the_stream() {
    let world = World::new().await;
    let mut fleet = FleetServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let question = |id: &str, service: &str| v1::DiagnoseAgentRequest { id: id.into(), service: service.into() };
    let nobody = fleet.diagnose_agent(question("web-1", "")).await.unwrap_err();
    assert_eq!(nobody.code(), Code::NotFound, "{nobody}");
    let mut agent = world.agent("web-1").await;
    let mut asking = fleet.clone();
    let asked = tokio::spawn(async move { asking.diagnose_agent(question("web-1", "spl")).await });
    let id = loop {
        if let ToAgent::Diagnose(question) = agent.next().await.unwrap() {
            assert_eq!(question.service, "spl");
            break question.id;
        }
    };
    let diagnosis = v1::Diagnosis { stories: vec!["spl: killed".into()], subjects_ok: 3, ..Default::default() };
    agent.send(ToCoordinator::Diagnosis(v1::DiagnoseAnswer { id, diagnosis: Some(diagnosis.clone()) })).await;
    let answer = asked.await.unwrap().unwrap().into_inner();
    assert!(answer.diagnosis == Some(diagnosis) && answer.round_trip.is_some());
    let wrong = fleet.diagnose_agent(question("web-1", "no service")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    // One that goes away while it is asked.
    let mut asking = fleet.clone();
    let asked = tokio::spawn(async move { asking.diagnose_agent(question("web-1", "")).await });
    while !matches!(agent.next().await.unwrap(), ToAgent::Diagnose(_)) {}
    drop(agent);
    let status = asked.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    gone(&world, "web-1").await;
    let status = fleet.diagnose_agent(question("web-1", "")).await.unwrap_err();
    assert!(status.code() == Code::Unavailable && status.message().contains("not connected"), "{status}");
    world.coordinator.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archived_agent_is_forgotten_until_it_comes_back() {
    let world = World::new().await;
    let archive = |id: &str, reason: &str| v1::ArchiveAgentRequest { id: id.into(), reason: reason.into() };
    let mut viewer = FleetServiceClient::new(world.channel(Role::Viewer, "eve").await);
    let mut fleet = FleetServiceClient::new(world.channel(Role::Operator, "ada").await);
    let mut agent = world.agent("web-1").await;
    agent.reports().await;
    let mut watched = viewer.watch_agents(v1::WatchAgentsRequest::default()).await.unwrap().into_inner();
    let refused = |status: Result<_, Status>| status.map(|_| ()).unwrap_err().code();
    assert_eq!(refused(viewer.archive_agent(archive("web-1", "sold")).await), Code::PermissionDenied);
    assert_eq!(refused(fleet.archive_agent(archive("web-1", " ")).await), Code::InvalidArgument);
    assert_eq!(refused(fleet.archive_agent(archive("web-9", "sold")).await), Code::NotFound);
    assert_eq!(refused(fleet.archive_agent(archive("web-1", "sold")).await), Code::FailedPrecondition);
    agent.send(ToCoordinator::Goodbye(v1::Goodbye { reason: v1::goodbye::Reason::Shutdown.into() })).await;
    gone(&world, "web-1").await;
    let ended = async {
        loop {
            // Its goodbye is journaled a moment after its stream is gone.
            match fleet.archive_agent(archive("web-1", "sold")).await {
                Ok(answer) => return answer.into_inner().findings_ended,
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, ended).await.unwrap(), 1);
    let listed = viewer.list_agents(v1::ListAgentsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.total_size, 0);
    let told = async {
        while let Some(change) = watched.message().await.unwrap() {
            if change.agent.is_none() {
                return change.archived;
            }
        }
        String::new()
    };
    assert_eq!(tokio::time::timeout(PATIENCE, told).await.unwrap(), "web-1", "whoever watches is told");
    // Why nobody was paged about it: by whom it was forgotten is known.
    let why = super::explain::about_host(&world.channel(Role::Viewer, "eve").await, "web-1", "", None).await;
    let why = why.unwrap_err();
    let words = why.message();
    assert_eq!(why.code(), Code::NotFound);
    assert!(
        words.starts_with("web-1 was archived by ") && words.contains(" at 20") && words.contains("(sold)"),
        "{words}"
    );
    let mut again = world.agent("web-1").await;
    again.reports().await;
    let agent = viewer.get_agent(v1::GetAgentRequest { id: "web-1".into() }).await.unwrap().into_inner();
    assert_eq!(agent.open_findings, 1);
    world.coordinator.stop().await.unwrap();
}
