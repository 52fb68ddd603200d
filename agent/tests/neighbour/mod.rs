//! What an agent answers: how things stand, and whether a neighbour answers it. Real sockets: an open port, one that
//! nobody listens on, one whose queue is full.

use crate::fake::{Behaviour, Fake};
use crate::{Agent, until};
use muster_agent::uplink::Stop;
use muster_agent::uplink::answers::look;
use muster_proto::v1;
use muster_proto::v1::port_answer::Outcome;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};

/// Another address of the loopback network: not the one that connections to it leave from, and so no own one.
const NEIGHBOUR: &str = "127.0.0.77";

fn outcome(answers: &[v1::PortAnswer], port: u16) -> Outcome {
    answers.iter().find(|answer| answer.port == u32::from(port)).unwrap().outcome()
}

/// A listener that takes nobody in and has no room for one more.
fn full() -> (TcpListener, Vec<TcpStream>) {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    let address: SocketAddr = format!("{NEIGHBOUR}:0").parse().unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let listener = TcpListener::from(socket);
    let at = listener.local_addr().unwrap();
    let patience = std::time::Duration::from_millis(200);
    let taken: Vec<TcpStream> = (0..8).map_while(|_| TcpStream::connect_timeout(&at, patience).ok()).collect();
    assert!(taken.len() < 8, "the queue is full");
    (listener, taken)
}

#[tokio::test]
async fn a_port_is_open_refused_or_silent_and_nothing_is_sent() {
    let address: IpAddr = NEIGHBOUR.parse().unwrap();
    let open = TcpListener::bind((address, 0)).unwrap();
    let closed = TcpListener::bind((address, 0)).unwrap();
    let (silent, _taken) = full();
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let ports = [port(&open), port(&closed), port(&silent)];
    drop(closed);
    let answers = look(address, &ports).await.unwrap();
    let outcomes = ports.map(|port| outcome(&answers, port));
    assert_eq!(outcomes, [Outcome::Open, Outcome::Refused, Outcome::Timeout]);
    let (mut seen, _) = open.accept().unwrap();
    let mut said = Vec::new();
    seen.read_to_end(&mut said).unwrap();
    assert!(said.is_empty(), "it was closed without a word");
    let own = look("127.0.0.1".parse().unwrap(), &ports).await.unwrap_err();
    assert!(own.contains("this very host"), "{own}");
}

#[tokio::test]
async fn questions_are_answered_on_their_stream_and_what_is_not_allowed_is_refused() {
    let neighbours: &[(&str, &[u32])] = &[
        ("127.0.0.1", &[22]),
        ("169.254.169.254", &[80]),
        ("10.0.0.7", &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ("nowhere.example", &[22]),
        ("10.0.0.7", &[]),
        ("::1", &[22]),
        // Reserved: no packet to it gets anywhere.
        ("192.0.2.1", &[22]),
    ];
    let fake = Fake::start([Behaviour::Curious(neighbours)]).await;
    let agent = Agent::start(vec![fake.endpoint()]);
    let state = until(&fake, |state| state.looks.len() == neighbours.len() && !state.diagnoses.is_empty()).await;
    let look = |id: u64| state.looks.iter().find(|answer| answer.id == id).unwrap();
    for (id, why) in [(0, "loopback"), (1, "link-local"), (2, "9 ports"), (3, "no IP"), (4, "0 ports"), (5, "loopback")]
    {
        assert!(look(id).refused.contains(why) && look(id).ports.is_empty(), "{why}: {:?}", look(id));
    }
    assert!(look(6).refused.is_empty() && outcome(&look(6).ports, 22) != Outcome::Open, "{:?}", look(6));
    // Heartbeats went on meanwhile, and the one who asks gets an answer where nobody judges.
    let diagnosis = state.diagnoses[0].diagnosis.as_ref().unwrap();
    assert!(state.diagnoses[0].id == 7 && diagnosis.unknown[0].why.contains("judges nothing"), "{diagnosis:?}");
    assert_eq!(state.broken, None);
    agent.uplink.shutdown(Stop::Agent).await;
}
