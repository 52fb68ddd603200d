//! The terminal while the live screen has it: the alternate screen, no echo, keys one by one. Given back on drop.

use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{Read, Write, stdin, stdout};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Where a terminal does not say how large it is.
const SIZE_DEFAULT: (usize, usize) = (80, 24);
/// ^C and ^D: without signals of the terminal they are keys.
const INTERRUPT: u8 = 3;
const END: u8 = 4;

/// What was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Enough.
    Quit,
    /// Anything else: draws anew.
    Other,
}

/// The screen.
pub(super) struct Screen {
    before: Option<Termios>,
}

impl Screen {
    pub(super) fn open() -> std::io::Result<Self> {
        let before = if isatty(stdin()) { Some(tcgetattr(stdin())?) } else { None };
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        }
        let screen = Self { before };
        let mut out = stdout();
        write!(out, "\u{1b}[?1049h\u{1b}[?25l\u{1b}[2J")?;
        out.flush()?;
        Ok(screen)
    }

    /// Columns and rows, as they are now.
    pub(super) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => SIZE_DEFAULT,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = stdout();
        // A terminal that is gone needs nothing given back.
        write!(out, "\u{1b}[?25h\u{1b}[?1049l").and_then(|()| out.flush()).ok();
        if let Some(before) = &self.before {
            tcsetattr(stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Keys as they are pressed, and the signals that end a program.
pub(super) struct Keys {
    pressed: UnboundedReceiver<u8>,
    ends: [tokio::signal::unix::Signal; 2],
}

impl Keys {
    pub(super) fn open() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (sender, pressed) = unbounded_channel();
        // Ends with the process: a read of a terminal cannot be called off.
        std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
            for byte in stdin().lock().bytes().map_while(Result::ok) {
                if sender.send(byte).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { pressed, ends: [signal(SignalKind::terminate())?, signal(SignalKind::hangup())?] })
    }

    pub(super) async fn next(&mut self) -> Key {
        let [terminate, hangup] = &mut self.ends;
        let byte = tokio::select! {
            byte = self.pressed.recv() => byte,
            _ = terminate.recv() => return Key::Quit,
            _ = hangup.recv() => return Key::Quit,
        };
        match byte {
            Some(b'q' | b'Q' | INTERRUPT | END) => Key::Quit,
            Some(_) => Key::Other,
            // Nobody sits there (standard input is closed): only a signal ends it.
            None => std::future::pending().await,
        }
    }
}
