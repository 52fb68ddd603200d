//! One conversation with systemd over the system bus: asks once, then listens to the signals of the configured units.
//!
//! All messages of the connection come through one stream and are taken in the order in which they were sent, so that an
//! answer never overwrites a newer signal. Any user of the host may send us a signal: only those of the bus itself and of
//! the owner of systemd's name are believed. Must never change anything on the host: nothing but questions is sent.

use super::decode::{PropertyMap, property};
use super::units::Shared;
use futures_util::StreamExt;
use muster_agent_core::unit::{Property, UnitState};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::Instant;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath};

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";
pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// An answer that takes longer will not come: systemd answers within milliseconds, but stands still for seconds while it
/// reads its units again on a slow disk.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// To connect and to say hello.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Messages that wait for us; beyond it the reader of the socket waits, and the bus after it.
const QUEUE_MAX: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// Properties of one unit type: systemd has about 350 of a service.
const PROPERTIES_MAX: usize = 2_048;

/// Why the conversation is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The bus cannot be reached, or it ended.
    #[error("the system bus cannot be reached: {0}")]
    Bus(String),
    /// It says no.
    #[error("the system bus refuses the agent: {0}")]
    Refused(String),
    /// Nobody owns systemd's name.
    #[error("systemd is not on the system bus")]
    NoSystemd,
    /// No answer.
    #[error("systemd gave no answer within {} s", ANSWER_MAX.as_secs())]
    Silent,
}

impl From<zbus::Error> for Lost {
    fn from(error: zbus::Error) -> Self {
        match error {
            zbus::Error::Handshake(why) => Self::Refused(why),
            other => Self::Bus(other.to_string()),
        }
    }
}

/// A question that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// Whoever has systemd's name.
    Owner,
    /// Its answer tells nothing (a match rule, Subscribe).
    Other,
    /// Where the unit is on the bus.
    Load(usize),
    /// All properties of the unit, or of its type.
    All(usize, bool),
    /// One property.
    One(usize, &'static str),
    /// When its state changed last: the same as known, or signals were missed.
    Check(usize),
}

/// One unit of the conversation.
struct Followed {
    name: String,
    type_interface: String,
    path: Option<OwnedObjectPath>,
    state: UnitState,
    /// The type's half of a change was told and the unit's not yet: together they make no sense.
    half_told: bool,
    /// Another look at a state that should pass is worth it then.
    again_at: Option<Instant>,
}

pub(super) struct Conversation<'a> {
    shared: &'a Shared,
    connection: Connection,
    owner: String,
    calls: BTreeMap<u32, (Call, Instant)>,
    units: Vec<Followed>,
    check_at: Instant,
    check_interval: Duration,
}

impl<'a> Conversation<'a> {
    /// Connects and talks until the connection is lost.
    pub(super) async fn hold(shared: &'a Shared, address: Option<&str>, check_interval: Duration) -> Lost {
        match Self::begin(shared, address, check_interval).await {
            Ok((mut conversation, stream)) => {
                let lost = conversation.listen(stream).await;
                conversation.connection.close().await.ok();
                lost
            }
            Err(lost) => lost,
        }
    }

    async fn begin(
        shared: &'a Shared,
        address: Option<&str>,
        check_interval: Duration,
    ) -> Result<(Self, MessageStream), Lost> {
        let builder = match address {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let connecting = builder.max_queued(QUEUE_MAX).method_timeout(ANSWER_MAX).build();
        let connection = tokio::time::timeout(CONNECT_MAX, connecting).await;
        let connection = connection.map_err(|_| Lost::Bus("no answer".to_owned()))??;
        let stream = MessageStream::from(&connection);
        let units = shared.names().map(Followed::new).collect();
        let check_at = Instant::now() + check_interval;
        let owner = String::new();
        let mut this = Self { shared, connection, owner, calls: BTreeMap::new(), units, check_at, check_interval };
        let name_rule = format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'");
        this.ask_bus("AddMatch", &name_rule, Call::Other).await?;
        this.ask_bus("GetNameOwner", SYSTEMD, Call::Owner).await?;
        Ok((this, stream))
    }

    async fn listen(&mut self, mut stream: MessageStream) -> Lost {
        loop {
            let step = tokio::select! {
                message = stream.next() => match message {
                    Some(Ok(message)) => self.take(&message).await,
                    Some(Err(error)) => Err(error.into()),
                    None => Err(Lost::Bus("it closed the connection".to_owned())),
                },
                () = tokio::time::sleep_until(self.next_at()) => self.tick().await,
            };
            if let Err(lost) = step {
                return lost;
            }
        }
    }

    fn next_at(&self) -> Instant {
        let answers = self.calls.values().map(|(_, asked)| *asked + ANSWER_MAX);
        let again = self.units.iter().filter_map(|unit| unit.again_at);
        answers.chain(again).fold(self.check_at, Instant::min)
    }

    async fn tick(&mut self) -> Result<(), Lost> {
        let now = Instant::now();
        if self.calls.values().any(|(_, asked)| *asked + ANSWER_MAX <= now) {
            return Err(Lost::Silent);
        }
        for unit in self.units.iter_mut().filter(|unit| unit.again_at.is_some_and(|at| at <= now)) {
            unit.again_at = None;
            self.shared.put(&unit.name, &unit.state);
        }
        if self.check_at <= now {
            self.check_at = now + self.check_interval;
            for index in 0..self.units.len() {
                self.get(index, UNIT, "StateChangeTimestampMonotonic", Call::Check(index)).await?;
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: &Message) -> Result<(), Lost> {
        let header = message.header();
        let sender = header.sender().map(|sender| sender.as_str()).unwrap_or_default();
        let is_systemd = !self.owner.is_empty() && sender == self.owner;
        if !is_systemd && sender != BUS {
            return Ok(());
        }
        match message.message_type() {
            Type::MethodReturn | Type::Error => {
                let serial = header.reply_serial().map_or(0, std::num::NonZeroU32::get);
                let Some((call, _)) = self.calls.remove(&serial) else { return Ok(()) };
                if message.message_type() == Type::Error {
                    let name = header.error_name().map(|name| name.as_str()).unwrap_or_default();
                    return self.refused(call, name, &message.body().deserialize::<String>().unwrap_or_default());
                }
                self.answered(call, message).await
            }
            Type::Signal => {
                let member = header.member().map(|member| member.as_str()).unwrap_or_default();
                let path = header.path().map(|path| path.as_str()).unwrap_or_default();
                match (member, is_systemd) {
                    ("PropertiesChanged", true) => self.changed(path, message).await,
                    // False: it has read all units again.
                    ("Reloading", true) if message.body().deserialize::<bool>() == Ok(false) => self.read_all().await,
                    ("UnitFilesChanged", true) => {
                        for index in 0..self.units.len() {
                            self.get(index, UNIT, "UnitFileState", Call::One(index, "UnitFileState")).await?;
                        }
                        Ok(())
                    }
                    // Another process has the name now, or none: begin anew, a connection costs little.
                    ("NameOwnerChanged", false) => self.owner_changed(message),
                    _ => Ok(()),
                }
            }
            Type::MethodCall => Ok(()),
        }
    }

    fn owner_changed(&self, message: &Message) -> Result<(), Lost> {
        let body = message.body();
        let Ok((name, _, new)) = body.deserialize::<(&str, &str, &str)>() else { return Ok(()) };
        if name == SYSTEMD && new != self.owner && !self.owner.is_empty() { Err(Lost::NoSystemd) } else { Ok(()) }
    }

    fn refused(&mut self, call: Call, name: &str, why: &str) -> Result<(), Lost> {
        let denied = name.ends_with(".AccessDenied") || name.ends_with(".InteractiveAuthorizationRequired");
        match call {
            Call::Owner => Err(Lost::NoSystemd),
            Call::Load(index) | Call::All(index, _) if denied => {
                self.say_why(index, format!("systemd does not let the agent read it: {why}"));
                Ok(())
            }
            Call::Load(index) if name.ends_with(".NoSuchUnit") => {
                let Some(unit) = self.units.get_mut(index) else { return Ok(()) };
                unit.state.set("LoadState", &Property::Text("not-found".to_owned()));
                unit.state.set("ActiveState", &Property::Text("inactive".to_owned()));
                self.publish(index);
                Ok(())
            }
            Call::Load(index) => {
                self.say_why(index, format!("systemd cannot look for it: {why} ({name})"));
                Ok(())
            }
            // A unit type without this interface, an older systemd without this property.
            Call::Other | Call::All(..) | Call::One(..) | Call::Check(_) => Ok(()),
        }
    }

    async fn answered(&mut self, call: Call, message: &Message) -> Result<(), Lost> {
        let body = message.body();
        match call {
            Call::Other => Ok(()),
            Call::Owner => {
                self.owner = body.deserialize::<String>().map_err(|_| Lost::NoSystemd)?;
                self.subscribe().await
            }
            Call::Load(index) => {
                let Ok(path) = body.deserialize::<OwnedObjectPath>() else { return Ok(()) };
                self.follow(index, path).await
            }
            Call::All(index, is_type) => {
                let Ok(all) = body.deserialize::<PropertyMap<'_>>() else {
                    self.say_why(index, "systemd's answer cannot be read".to_owned());
                    return Ok(());
                };
                self.set_all(index, &all);
                // The type's answer comes second: then all is there.
                if is_type {
                    self.publish(index);
                }
                Ok(())
            }
            Call::One(index, name) => {
                let Ok(value) = body.deserialize::<zbus::Variant<'_>>() else { return Ok(()) };
                if let Some(unit) = self.units.get_mut(index) {
                    unit.state.set(name, &property(&value));
                }
                self.publish(index);
                Ok(())
            }
            Call::Check(index) => {
                let Ok(value) = body.deserialize::<zbus::Variant<'_>>() else { return Ok(()) };
                let known = self.units.get(index).map(|unit| Property::Number(unit.state.state_change_usec));
                if known == Some(property(&value)) { Ok(()) } else { self.read(index).await }
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), Lost> {
        let rule = format!("type='signal',sender='{SYSTEMD}',interface='{MANAGER}'");
        for member in ["Reloading", "UnitFilesChanged"] {
            self.ask_bus("AddMatch", &format!("{rule},member='{member}'"), Call::Other).await?;
        }
        self.ask(SYSTEMD, SYSTEMD_PATH, MANAGER, "Subscribe", &(), Call::Other).await?;
        for index in 0..self.units.len() {
            let Some(name) = self.units.get(index).map(|unit| unit.name.clone()) else { continue };
            self.ask(SYSTEMD, SYSTEMD_PATH, MANAGER, "LoadUnit", &(name.as_str(),), Call::Load(index)).await?;
        }
        self.shared.connected(&self.connection);
        Ok(())
    }

    async fn follow(&mut self, index: usize, path: OwnedObjectPath) -> Result<(), Lost> {
        let rule = format!(
            "type='signal',sender='{SYSTEMD}',interface='{PROPERTIES}',member='PropertiesChanged',path='{path}'"
        );
        if let Some(unit) = self.units.get_mut(index) {
            unit.path = Some(path);
        }
        // First the rule, then the questions: what changes between is told twice rather than never.
        self.ask_bus("AddMatch", &rule, Call::Other).await?;
        self.read(index).await
    }

    async fn read_all(&mut self) -> Result<(), Lost> {
        for index in 0..self.units.len() {
            self.read(index).await?;
        }
        Ok(())
    }

    async fn read(&mut self, index: usize) -> Result<(), Lost> {
        let Some((path, interface)) = self.place(index) else { return Ok(()) };
        self.ask(SYSTEMD, &path, PROPERTIES, "GetAll", &(UNIT,), Call::All(index, false)).await?;
        self.ask(SYSTEMD, &path, PROPERTIES, "GetAll", &(interface.as_str(),), Call::All(index, true)).await
    }

    fn place(&self, index: usize) -> Option<(String, String)> {
        let unit = self.units.get(index)?;
        Some((unit.path.as_ref()?.as_str().to_owned(), unit.type_interface.clone()))
    }

    async fn get(&mut self, index: usize, interface: &str, name: &str, call: Call) -> Result<(), Lost> {
        let Some((path, _)) = self.place(index) else { return Ok(()) };
        self.ask(SYSTEMD, &path, PROPERTIES, "Get", &(interface, name), call).await
    }

    /// systemd sends the type's properties first, then the unit's: after the second both fit together.
    async fn changed(&mut self, path: &str, message: &Message) -> Result<(), Lost> {
        let is_it = |unit: &Followed| unit.path.as_ref().is_some_and(|its| its.as_str() == path);
        let Some(index) = self.units.iter().position(is_it) else { return Ok(()) };
        let body = message.body();
        let Ok((interface, changed, stale)) = body.deserialize::<(&str, PropertyMap<'_>, Vec<&str>)>() else {
            return self.read(index).await;
        };
        let before = self.units.get(index).map(|unit| unit.state.active_state.clone());
        self.set_all(index, &changed);
        if let Some(unit) = self.units.get_mut(index) {
            unit.half_told = interface != UNIT;
        }
        let (known, interface) = if interface == UNIT {
            (UnitState::UNIT_PROPERTIES, UNIT.to_owned())
        } else {
            (UnitState::TYPE_PROPERTIES, interface.to_owned())
        };
        for name in known.iter().copied().filter(|name| stale.contains(name)) {
            self.get(index, &interface, name, Call::One(index, name)).await?;
        }
        if interface == UNIT {
            self.publish(index);
            let place = self.place(index);
            let started = before != self.units.get(index).map(|unit| unit.state.active_state.clone());
            if let Some((_, interface)) = place.filter(|_| started) {
                // Changes with the state, but no signal tells.
                self.get(index, &interface, "ControlGroup", Call::One(index, "ControlGroup")).await?;
            }
        }
        Ok(())
    }

    fn set_all(&mut self, index: usize, all: &PropertyMap<'_>) {
        let Some(unit) = self.units.get_mut(index) else { return };
        for (name, value) in all.iter().take(PROPERTIES_MAX) {
            if UnitState::reads(name) {
                unit.state.set(name, &property(value));
            }
        }
        unit.state.settle();
    }

    fn publish(&mut self, index: usize) {
        let Some(unit) = self.units.get_mut(index).filter(|unit| unit.state.is_complete() && !unit.half_told) else {
            return;
        };
        // A little later than the grace, so that it is over.
        unit.again_at = unit.state.passes_within().map(|grace| Instant::now() + grace + grace / 10);
        self.shared.put(&unit.name, &unit.state);
    }

    fn say_why(&self, index: usize, why: String) {
        if let Some(unit) = self.units.get(index) {
            self.shared.put_unreadable(&unit.name, &why);
        }
    }

    async fn ask_bus(&mut self, method: &str, argument: &str, call: Call) -> Result<(), Lost> {
        self.ask(BUS, BUS_PATH, BUS, method, &(argument,), call).await
    }

    async fn ask<B: serde::Serialize + zbus::DynamicType + Sync>(
        &mut self,
        destination: &str,
        path: &str,
        interface: &str,
        method: &str,
        body: &B,
        call: Call,
    ) -> Result<(), Lost> {
        let question = Message::method_call(path, method).destination(destination).interface(interface).build(body)?;
        self.calls.insert(question.primary_header().serial_num().get(), (call, Instant::now()));
        self.connection.send(&question).await?;
        Ok(())
    }
}

/// The interface with what only units of its type have.
pub(super) fn type_interface(unit: &str) -> String {
    let suffix = unit.rsplit('.').next().unwrap_or_default();
    let mut letters = suffix.chars();
    let capital: String = letters.next().iter().map(char::to_ascii_uppercase).collect();
    format!("{SYSTEMD}.{capital}{}", letters.as_str())
}

impl Followed {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            type_interface: type_interface(name),
            path: None,
            state: UnitState::default(),
            half_told: false,
            again_at: None,
        }
    }
}
