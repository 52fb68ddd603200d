//! The health sense against real servers on this host: well, unwell, slow, hanging, hostile, and with certificates.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use muster_agent::clock;
use muster_agent::config::health::{Field, Health};
use muster_agent::net::Net;
use muster_agent::probe::{Context, Probe};
use muster_agent::senses::health::HealthProbe;
use muster_agent_core::judgement::{Judgement, Verdict};
use muster_common::evidence::Value;
use muster_common::ids::ServiceName;
use muster_common::reason::Reason;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Far more than an answer takes; reached only when something is broken.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
const DAY: Duration = Duration::from_secs(86_400);

/// A server that lets `serve` have each connection after its request was read. Ends with the process.
fn server(serve: impl Fn(&mut TcpStream) + Send + 'static) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let request = read_request(&mut stream);
            serve(&mut stream);
            // Not every test wants to know.
            sender.send(request).ok();
        }
    });
    (port, requests)
}

fn read_request(stream: &mut impl Read) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        request.extend(byte);
    }
    String::from_utf8_lossy(&request).into_owned()
}

/// A server that says one thing.
fn says(answer: &'static str) -> Health {
    let (port, _) = server(move |stream| drop(stream.write_all(answer.as_bytes())));
    Health::new(format!("http://127.0.0.1:{port}/health"))
}

fn probe(health: &Health, net: &Net) -> HealthProbe {
    HealthProbe::new(ServiceName::new("spl").unwrap(), health, Duration::from_secs(10), net.handle())
}

fn context(one_shot: bool) -> Context {
    Context { now: clock::now(), services: Arc::default(), one_shot }
}

/// One look, as `doctor` does it.
fn look(health: &Health) -> Judgement {
    let net = Net::start().unwrap();
    probe(health, &net).run(&context(true))
}

fn only(judgement: &Judgement) -> (Reason, &str, String) {
    let [problem] = judgement.problems.as_slice() else { panic!("{judgement:?}") };
    let phase = problem.evidence.get("phase").map(ToString::to_string).unwrap_or_default();
    (problem.reason, problem.summary.as_str(), phase)
}

#[test]
fn a_healthy_endpoint_is_asked_politely() {
    let (port, requests) =
        server(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap());
    let mut health = Health::new(format!("http://127.0.0.1:{port}/readyz?full=1"));
    health.headers.insert("X-Probe".into(), "yes".into());
    let judgement = look(&health);
    assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
    assert_eq!(judgement.seen.get("status"), Some(&Value::Count(200)));
    let request = requests.recv().unwrap();
    assert!(request.starts_with("GET /readyz?full=1 HTTP/1.1\r\n"), "{request}");
    for line in
        [&format!("Host: 127.0.0.1:{port}\r\n"), "Connection: close\r\n", "X-Probe: yes\r\n", "User-Agent: muster"]
    {
        assert!(request.contains(line), "{request}");
    }
}

#[test]
fn what_is_not_well_is_told_with_its_words_and_without_its_secrets() {
    let unwell = "HTTP/1.1 503 Unavailable\r\nContent-Length: 50\r\n\r\n{\"db\": \"locked\", \"password\": \"hunter2hunter2hunt\"}\n";
    let judgement = look(&says(unwell));
    let (reason, summary, phase) = only(&judgement);
    assert_eq!((reason, phase.as_str()), (Reason::HealthCheckFailed, "response"));
    assert!(summary.contains("status 503"), "{summary}");
    let body = judgement.problems[0].evidence.get("body").unwrap().to_string();
    assert!(body.contains("locked") && !body.contains("hunter2"), "{body}");
    let moved = look(&says("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"));
    assert!(only(&moved).1.contains("redirects to /login, and redirects are not followed"), "{moved:?}");
}

/// A service logs a caller that resets the connection as one that broke off.
#[test]
fn a_long_answer_is_read_to_its_end_within_bounds() {
    let said = |bytes: usize| {
        let (sender, closed) = channel();
        let (port, _) = server(move |stream| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n");
            let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'x'; bytes]));
            // The end of what the other side says: in order, or a reset.
            let end =
                sent.and_then(|()| stream.shutdown(std::net::Shutdown::Write)).and_then(|()| stream.read(&mut [0]));
            sender.send(end.map_err(|error| error.kind())).unwrap();
        });
        let judgement = look(&Health::new(format!("http://127.0.0.1:{port}/health")));
        assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}");
        closed.recv().unwrap()
    };
    assert_eq!(said(10), Ok(0));
    assert_eq!(said(700 << 10), Ok(0));
    assert!(said(64 << 20).is_err(), "nobody is read for ever");
}

#[test]
fn a_field_of_the_body_decides() {
    let field = Some(Field { pointer: "/checks/0/state".into(), equals: "up".into() });
    for (body, expected) in [
        (r#"{"checks": [{"state": "up"}]}"#, None),
        (r#"{"checks": [{"state": "down"}]}"#, Some("is \"down\" where \"up\" is expected")),
        (r#"{"checks": []}"#, Some("has no /checks/0/state")),
        ("<html>ok</html>", Some("is not JSON")),
        ("", Some("is not JSON (it is empty)")),
        ("\u{feff}{\"checks\": [{\"state\": \"up\"}]}", None),
    ] {
        let (port, _) =
            server(move |stream| drop(stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes())));
        let health = Health { field: field.clone(), ..Health::new(format!("http://127.0.0.1:{port}/h")) };
        let judgement = look(&health);
        match expected {
            None => assert_eq!(judgement.verdict(), Verdict::Ok, "{judgement:?}"),
            Some(expected) => assert!(only(&judgement).1.contains(expected), "{judgement:?}"),
        }
    }
    let (port, _) = server(|stream| {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        drop(stream.write_all(&[head.as_slice(), &vec![b'1'; 1 << 20]].concat()));
    });
    let url = format!("http://127.0.0.1:{port}/h");
    let huge = look(&Health { field, ..Health::new(url.clone()) });
    assert!(only(&huge).1.contains("too long"), "{huge:?}");
    assert_eq!(look(&Health::new(url)).verdict(), Verdict::Ok, "its length alone is no problem");
}

#[test]
fn each_way_to_fail_names_how_far_it_came() {
    // A port of which nobody else can take hold meanwhile.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = closed.local_addr().unwrap().port();
    drop(closed);
    let judgement = look(&Health::new(format!("http://127.0.0.1:{port}/")));
    assert_eq!(only(&judgement).2, "connect", "{judgement:?}");
    assert!(only(&judgement).1.contains("refused"), "{judgement:?}");

    let judgement = look(&Health::new("http://no-such-host.invalid/".into()));
    let phase = only(&judgement).2;
    assert_eq!(phase, "resolve", "{judgement:?}");

    for (answer, expected) in [
        ("", "closed before an answer"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", "closed within the answer"),
        ("220 mail.example ESMTP\r\n", "does not speak HTTP"),
    ] {
        let judgement = look(&says(answer));
        assert!(only(&judgement).1.contains(expected), "{judgement:?}");
        assert_eq!(only(&judgement).2, "response");
    }
    let (port, _) = server(|stream| {
        let line = format!("X-Long: {}\r\n", "a".repeat(1000));
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\n").and_then(|()| stream.write_all(line.repeat(1000).as_bytes())));
    });
    let bomb = look(&Health::new(format!("http://127.0.0.1:{port}/")));
    assert!(only(&bomb).1.contains("headers"), "{bomb:?}");
    let reset = server(|stream| {
        // With data unread and no linger the kernel resets.
        let linger = rustix::net::sockopt::set_socket_linger(&*stream, Some(Duration::ZERO));
        linger.unwrap();
    });
    let judgement = look(&Health::new(format!("http://127.0.0.1:{}/", reset.0)));
    assert_eq!(only(&judgement).2, "response", "{judgement:?}");
}

#[test]
fn one_that_hangs_costs_its_time_out_and_nobody_else() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Accepts by the kernel's backlog, never answers.
    let health = Health { timeout: Duration::from_millis(100), ..Health::new(format!("http://127.0.0.1:{port}/")) };
    let judgement = look(&health);
    let (reason, summary, phase) = only(&judgement);
    assert_eq!((reason, phase.as_str()), (Reason::HealthCheckFailed, "response"));
    assert!(summary.contains("does not answer: no whole answer came within"), "{summary}");
    assert_eq!(judgement.problems[0].evidence.get("timed_out"), Some(&Value::Flag(true)));
    drop(listener);
}

#[test]
fn in_the_daemon_a_run_never_waits_and_the_answer_wakes_it() {
    let net = Net::start().unwrap();
    let status = Arc::new(Mutex::new("503 Unwell"));
    let said = Arc::clone(&status);
    let (port, _requests) = server(move |stream| {
        let answer = format!("HTTP/1.1 {}\r\nContent-Length: 0\r\n\r\n", said.lock().unwrap());
        drop(stream.write_all(answer.as_bytes()));
    });
    let mut probe = probe(&Health::new(format!("http://127.0.0.1:{port}/health")), &net);
    let mut at = clock::now();
    let mut round = |probe: &mut HealthProbe| {
        at.boottime_ms += 10_000;
        let mut context = context(false);
        context.now = at;
        let before = probe.run(&context);
        let bell = probe.wake().unwrap();
        assert_eq!(poll(&mut [PollFd::new(&*bell, PollFlags::IN)], Some(&PATIENCE)).unwrap(), 1);
        (before, probe.run(&context))
    };
    let (before, first) = round(&mut probe);
    assert!(before.unknown.is_some());
    assert!(first.problems.is_empty() && first.unknown.is_some(), "one failure is none: {first:?}");
    let (_, second) = round(&mut probe);
    assert_eq!(only(&second).0, Reason::HealthCheckFailed);
    *status.lock().unwrap() = "200 OK";
    let (before, third) = round(&mut probe);
    assert_eq!(only(&before).0, Reason::HealthCheckFailed, "it stands until the next answer");
    assert_eq!(third.verdict(), Verdict::Ok);
}

#[test]
fn an_answer_does_not_stand_for_ever_when_no_new_one_comes() {
    let net = Net::start().unwrap();
    let health = says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let mut probe = probe(&health, &net);
    let mut context = context(false);
    probe.run(&context);
    assert_eq!(poll(&mut [PollFd::new(&*probe.wake().unwrap(), PollFlags::IN)], Some(&PATIENCE)).unwrap(), 1);
    assert_eq!(probe.run(&context).verdict(), Verdict::Ok);
    drop(net);
    context.now.boottime_ms += 15_000;
    assert_eq!(probe.run(&context).verdict(), Verdict::Ok, "the last one stands for a while");
    context.now.boottime_ms += 60_000;
    let deaf = probe.run(&context);
    assert_eq!(deaf.verdict(), Verdict::Unknown, "{deaf:?}");
    assert!(deaf.problems.is_empty() && deaf.unknown.unwrap().why.contains("no request has ended for 75 s"));
}

#[test]
fn a_unix_socket_is_asked_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spl.sock");
    let health = Health::new(format!("unix:{}:/health", path.display()));
    let missing = look(&health);
    assert!(only(&missing).1.contains("the socket does not exist"), "{missing:?}");
    let listener = UnixListener::bind(&path).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = read_request(&mut stream);
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        request
    });
    assert_eq!(look(&health).verdict(), Verdict::Ok);
    assert!(server.join().unwrap().starts_with("GET /health HTTP/1.1\r\nHost: localhost\r\n"));
}

/// A server with a certificate for `localhost` that is valid until `days` from now; the file of its CA.
fn tls_server(folder: &tempfile::TempDir, days: i64) -> (u16, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "spl health");
    let days = i32::try_from(days).unwrap();
    let now = SystemTime::now();
    let until = if days < 0 { now - DAY * days.unsigned_abs() } else { now + DAY * days.unsigned_abs() };
    // A minute more, so that whole days are left.
    params.not_after = (until + Duration::from_secs(60)).into();
    params.not_before = (now - DAY * 90).into();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(muster_common::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for tcp in listener.incoming() {
            let Ok(tcp) = tcp else { return };
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, tcp);
            // A client that refuses the certificate ends it here.
            if !read_request(&mut stream).is_empty() {
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
                stream.conn.send_close_notify();
                drop(stream.flush());
            }
        }
    });
    (port, ca_file)
}

#[test]
fn certificates_are_verified_and_their_end_is_told() {
    for (days, reasons) in [
        (90, vec![]),
        (3, vec![Reason::CertificateExpiring]),
        (-2, vec![Reason::CertificateExpiring, Reason::HealthCheckFailed]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (port, ca) = tls_server(&folder, days);
        let health = Health { ca: Some(ca), ..Health::new(format!("https://localhost:{port}/health")) };
        let judgement = look(&health);
        let found: Vec<Reason> = judgement.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(found, reasons, "{days} {judgement:?}");
        if let Some(expiring) = judgement.problems.first() {
            assert!(expiring.evidence.get("subject").unwrap().to_string().contains("CN=spl health"), "{expiring:?}");
            assert_eq!(expiring.evidence.get("left_days"), Some(&Value::Count(u64::try_from(days.max(0)).unwrap())));
        }
        if days < 0 {
            assert_eq!(judgement.problems[1].evidence.get("phase"), Some(&Value::Text("tls".into())), "{judgement:?}");
        }
    }
}

#[test]
fn a_name_or_an_authority_that_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (port, ca) = tls_server(&folder, 90);
    let url = format!("https://127.0.0.1:{port}/");
    let by_address = look(&Health { ca: Some(ca.clone()), ..Health::new(url.clone()) });
    assert!(only(&by_address).1.contains("its certificate is refused"), "{by_address:?}");
    let named = Health { ca: Some(ca), server_name: Some("localhost".into()), ..Health::new(url.clone()) };
    assert_eq!(look(&named).verdict(), Verdict::Ok);
    let other = tempfile::tempdir().unwrap();
    let (_, foreign) = tls_server(&other, 90);
    let foreign =
        look(&Health { ca: Some(foreign), server_name: Some("localhost".into()), ..Health::new(url.clone()) });
    assert_eq!(only(&foreign).2, "tls", "{foreign:?}");
    let gone = look(&Health { ca: Some(folder.path().join("none")), ..Health::new(url) });
    assert_eq!(gone.verdict(), Verdict::Unknown, "a missing CA says nothing of the service: {gone:?}");
    let plain = look(&Health {
        ca: Some(folder.path().join("ca.pem")),
        timeout: Duration::from_millis(500),
        ..Health::new(says("HTTP/1.1 200 OK\r\n\r\n").url.replace("http:", "https:").replace("127.0.0.1", "localhost"))
    });
    assert_eq!(only(&plain).2, "tls", "{plain:?}");
}

#[test]
fn slower_than_a_diagnosis_waits_is_not_slower_than_the_service_may_be() {
    let (port, _) = server(|_stream| std::thread::sleep(Duration::from_secs(3)));
    let judgement = look(&Health::new(format!("http://127.0.0.1:{port}/health")));
    let why = judgement.unknown.expect("doctor cannot know").why;
    assert!(judgement.problems.is_empty() && why.contains("the daemon allows 5 s"), "{why}");
}
