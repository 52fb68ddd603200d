//! Mail against a server of our own: STARTTLS, TLS from the start, login, refusals, and what must never happen.

use crate::http::{config, deliver_all, lane, tls_acceptor};
use crate::{page, primary};
use muster_coordinator::pager::config::{MailConfig, MailTls};
use muster_coordinator::pager::receiver::Judgement;
use muster_coordinator::pager::{Outcome, ReceiverConfig, ReceiverKind};
use muster_coordinator_core::page::PageAction;
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// How the server behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// Takes nothing for now.
    Greylists,
    /// Knows nobody.
    Refuses,
    /// Knows all but the first recipient.
    RefusesFirst,
    WrongPassword,
    /// Knows no password, and repeats what it was told.
    Parrot,
    NoStartTls,
    /// Somebody in between goes on talking in the clear.
    Injects,
    /// Says something without end.
    Endless,
    Garbage,
}

#[derive(Debug, Default)]
struct Heard {
    /// Commands, with a mark for those that were protected.
    commands: Vec<(bool, String)>,
    mails: Vec<String>,
}

struct Server {
    port: u16,
    ca: String,
    heard: Arc<Mutex<Heard>>,
}

async fn start(mood: Mood, implicit: bool) -> Server {
    let (acceptor, ca) = tls_acceptor();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let told = Arc::clone(&heard);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, heard) = (acceptor.clone(), Arc::clone(&told));
            tokio::spawn(async move {
                if implicit {
                    let stream = acceptor.accept(stream).await.ok()?;
                    talk(BufReader::new(stream), mood, true, true, &heard).await;
                    return Some(());
                }
                let stream = talk(BufReader::new(stream), mood, false, true, &heard).await?;
                let stream = acceptor.accept(stream.into_inner()).await.ok()?;
                talk(BufReader::new(stream), mood, true, false, &heard).await;
                Some(())
            });
        }
    });
    Server { port, ca, heard }
}

/// Serves one connection; gives it back at STARTTLS.
async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: BufReader<S>,
    mood: Mood,
    protected: bool,
    greets: bool,
    heard: &Mutex<Heard>,
) -> Option<BufReader<S>> {
    if greets {
        let greeting = match mood {
            Mood::Garbage => "SSH-2.0-OpenSSH_9\r\n".to_owned(),
            Mood::Endless => "220-more\r\n".repeat(10_000),
            _ => "220 mx.example ESMTP\r\n".to_owned(),
        };
        stream.write_all(greeting.as_bytes()).await.ok()?;
    }
    let mut recipients = 0;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        let command = line.trim_end().to_owned();
        heard.lock().unwrap().commands.push((protected, command.clone()));
        let verb = command.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" if protected => "250-mx.example\r\n250 AUTH PLAIN LOGIN\r\n",
            "EHLO" if mood == Mood::NoStartTls => "250-mx.example\r\n250 AUTH PLAIN\r\n",
            "EHLO" => "250-mx.example\r\n250-SIZE 1000000\r\n250 STARTTLS\r\n",
            "STARTTLS" => {
                let more = if mood == Mood::Injects { "250 AUTH PLAIN\r\n" } else { "" };
                stream.write_all(format!("220 go\r\n{more}").as_bytes()).await.ok()?;
                stream.flush().await.ok()?;
                return Some(stream);
            }
            "AUTH" if mood == Mood::WrongPassword => "535 5.7.8 no\r\n",
            "AUTH" if mood == Mood::Parrot => {
                stream.write_all(format!("535 5.7.8 no: {command}\r\n").as_bytes()).await.ok()?;
                continue;
            }
            "AUTH" => "235 well\r\n",
            "MAIL" if mood == Mood::Greylists => "451 4.7.1 later\r\n",
            "MAIL" => "250 ok\r\n",
            "RCPT" => {
                recipients += 1;
                let refuses = mood == Mood::Refuses || (mood == Mood::RefusesFirst && recipients == 1);
                if refuses { "550 5.1.1 nobody\r\n" } else { "250 ok\r\n" }
            }
            "DATA" => {
                stream.write_all(b"354 go\r\n").await.ok()?;
                let mut mail = String::new();
                loop {
                    let mut line = String::new();
                    stream.read_line(&mut line).await.ok()?;
                    if line == ".\r\n" {
                        break;
                    }
                    mail.push_str(&line);
                }
                heard.lock().unwrap().mails.push(mail);
                "250 queued as 42\r\n"
            }
            _ => "221 bye\r\n",
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

const PASSWORD: &str = "p ss wörd";

fn mail(dir: &Path, server: &Server, tls: MailTls) -> ReceiverConfig {
    std::fs::write(dir.join("ca.pem"), &server.ca).unwrap();
    std::fs::write(dir.join("password"), format!("{PASSWORD}\n")).unwrap();
    let kind = ReceiverKind::Mail(MailConfig {
        host: "localhost".to_owned(),
        port: server.port,
        tls,
        from: "muster@example.com".to_owned(),
        to: vec!["one@example.com".to_owned(), "two@example.com".to_owned()],
        login: Some(("muster".to_owned(), dir.join("password").into())),
    });
    ReceiverConfig { ca: Some(dir.join("ca.pem")), ..config("mail", kind) }
}

/// What becomes of one try.
async fn one_try(mood: Mood, tls: MailTls) -> (Judgement, Server) {
    let server = start(mood, tls == MailTls::Implicit).await;
    let dir = tempfile::tempdir().unwrap();
    let lane = lane(mail(dir.path(), &server, tls));
    (lane.test(page("mail", "a", PageAction::Trigger)).await, server)
}

#[tokio::test]
async fn pages_arrive_protected_and_logged_in() {
    for tls in [MailTls::StartTls, MailTls::Implicit] {
        let server = start(Mood::Well, tls == MailTls::Implicit).await;
        let dir = tempfile::tempdir().unwrap();
        let journal = primary();
        journal.request(7, page("mail", "a", PageAction::Trigger));
        journal.request(8, page("mail", "a", PageAction::Resolve));
        deliver_all(&journal, mail(dir.path(), &server, tls)).await;
        assert_eq!((journal.outcome(7), journal.outcome(8)), (Some(Outcome::Delivered), Some(Outcome::Delivered)));
        let heard = server.heard.lock().unwrap();
        let clear: Vec<_> = heard.commands.iter().filter(|(protected, _)| !protected).map(|(_, word)| word).collect();
        assert!(clear.iter().all(|word| word.starts_with("EHLO [127.0.0.1]") || *word == "STARTTLS"), "{clear:?}");
        let login = heard.commands.iter().find(|(_, command)| command.starts_with("AUTH PLAIN ")).unwrap();
        assert!(login.0, "the password is never sent in the clear");
        assert_eq!(heard.mails.len(), 2);
        assert!(heard.mails[0].contains("Message-ID: <page-7.INC-20261121-0001.prod@example.com>\r\n"));
        assert!(heard.mails[1].contains("Subject: resolved: spl on web-1 is down (INC-20261121-0001)\r\n"));
        let thread = "References: <INC-20261121-0001.prod@example.com>\r\n";
        assert!(heard.mails.iter().all(|mail| mail.contains(thread)), "one incident is one thread: {:?}", heard.mails);
    }
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_will_not_is_final() {
    for (mood, told) in [
        (Mood::Greylists, "answered 451: 4.7.1 later"),
        (Mood::WrongPassword, "login answered 535"),
        (Mood::Garbage, "no mail server"),
        (Mood::Endless, "an answer without end"),
    ] {
        let (judged, server) = one_try(mood, MailTls::StartTls).await;
        let Judgement::Retry { error, .. } = judged else { panic!("{mood:?}: {judged:?}") };
        assert!(error.contains(told) && !error.contains(PASSWORD), "{error}");
        assert!(server.heard.lock().unwrap().mails.is_empty());
    }
    let (judged, _) = one_try(Mood::Refuses, MailTls::StartTls).await;
    let Judgement::Refused(error) = judged else { panic!("{judged:?}") };
    assert!(error.contains("answered 550: 5.1.1 nobody"), "{error}");
    let (judged, server) = one_try(Mood::Parrot, MailTls::StartTls).await;
    let Judgement::Retry { error, .. } = judged else { panic!("{judged:?}") };
    let heard = server.heard.lock().unwrap();
    let login = heard.commands.iter().find_map(|(_, command)| command.strip_prefix("AUTH PLAIN ")).unwrap();
    assert!(error.contains("535 5.7.8 no") || error.contains("535: 5.7.8 no"), "{error}");
    assert!(!error.contains(login), "the password is in it: {error}");
}

#[tokio::test]
async fn one_address_that_is_gone_keeps_the_page_from_nobody_and_is_shown() {
    let server = start(Mood::RefusesFirst, false).await;
    let dir = tempfile::tempdir().unwrap();
    let lane = lane(mail(dir.path(), &server, MailTls::StartTls));
    assert_eq!(lane.test(page("mail", "a", PageAction::Trigger)).await, Judgement::Delivered);
    assert_eq!(server.heard.lock().unwrap().mails.len(), 1);
    let remark = lane.status().remark;
    let told = "1 of 2 recipients get no mail: one@example.com: recipients answered 550: 5.1.1 nobody";
    assert_eq!(remark, told, "an operator sees it");
}

#[tokio::test]
async fn nothing_goes_in_the_clear_and_nobody_in_between_is_believed() {
    for (mood, told) in [(Mood::NoStartTls, "offers no STARTTLS"), (Mood::Injects, "in the clear after STARTTLS")] {
        let (judged, server) = one_try(mood, MailTls::StartTls).await;
        let Judgement::Retry { error, .. } = judged else { panic!("{mood:?}: {judged:?}") };
        assert!(error.contains(told), "{error}");
        let heard = server.heard.lock().unwrap();
        assert!(heard.mails.is_empty() && !heard.commands.iter().any(|(_, word)| word.starts_with("AUTH")));
    }
}

#[tokio::test]
async fn a_stranger_gets_neither_password_nor_mail() {
    let (server, other) = (start(Mood::Well, false).await, start(Mood::Well, false).await);
    let dir = tempfile::tempdir().unwrap();
    let mut config = mail(dir.path(), &server, MailTls::StartTls);
    std::fs::write(dir.path().join("other.pem"), &other.ca).unwrap();
    config.ca = Some(dir.path().join("other.pem"));
    let judged = lane(config).test(page("mail", "a", PageAction::Trigger)).await;
    assert!(matches!(&judged, Judgement::Retry { error, .. } if error.contains("certificate")), "{judged:?}");
    assert!(server.heard.lock().unwrap().commands.iter().all(|(protected, _)| !protected));
}
