//! The terminal while it is ours: whole frames out, keys in, and everything as it was at the end.

use std::io::{self, Read, Stdout, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::style::{Attribute, Color, ResetColor, SetAttribute, SetForegroundColor};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap,
    EndSynchronizedUpdate, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use crossterm::{execute, queue};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::{flag, low_level};

use super::section::cut;
use crate::visible::printable;

/// Control bytes of keys.
const CTRL_C: u8 = 0x03;
const ESCAPE: u8 = 0x1b;

/// Columns and rows.
pub(super) type Size = (usize, usize);

/// A line of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub text: String,
    pub look: Look,
}

/// How a line stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    /// The most important.
    Strong,
    /// Names of columns.
    Faint,
    /// Something is wrong.
    Alarm,
}

/// Why a wait was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// There may be something new to show.
    Look,
    /// It is to end.
    End,
}

/// The terminal, in raw mode and with a screen of its own until this is dropped.
pub(super) struct Screen {
    out: Stdout,
    /// Gets a byte when there is something to look at.
    wakes: UnixStream,
    waker: Arc<Waker>,
    /// Whether a signal wants it to end.
    ended: Arc<AtomicBool>,
}

/// Ends a wait of the screen.
pub(super) struct Waker(UnixStream);

impl Waker {
    pub fn wake(&self) {
        // One that is full has enough in it to end a wait.
        let _ = (&self.0).write(&[0]);
    }
}

impl Screen {
    /// Takes the terminal.
    pub fn open() -> io::Result<Self> {
        let (wakes, waker) = UnixStream::pair()?;
        wakes.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            // The second ends it, where the terminal takes nothing more and holds up the frame.
            flag::register_conditional_default(signal, Arc::clone(&ended))?;
            flag::register(signal, Arc::clone(&ended))?;
        }
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGWINCH] {
            low_level::pipe::register(signal, waker.try_clone()?)?;
        }
        enable_raw_mode()?;
        // From here on its end puts everything back.
        let mut screen = Self {
            out: io::stdout(),
            wakes,
            waker: Arc::new(Waker(waker)),
            ended,
        };
        execute!(screen.out, EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    /// What ends its waits.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Shows a frame that fits.
    pub fn draw(&mut self, frame: impl FnOnce(Size) -> Vec<Line>) -> io::Result<()> {
        let (columns, rows) = size()?;
        let lines = frame((columns.into(), rows.into()));
        let out = &mut self.out;
        queue!(out, BeginSynchronizedUpdate, MoveTo(0, 0))?;
        for (row, line) in lines.iter().take(rows.into()).enumerate() {
            if row > 0 {
                out.write_all(b"\r\n")?;
            }
            match line.look {
                Look::Plain => {}
                Look::Strong => queue!(out, SetAttribute(Attribute::Bold))?,
                Look::Faint => queue!(out, SetAttribute(Attribute::Dim))?,
                Look::Alarm => queue!(
                    out,
                    SetAttribute(Attribute::Bold),
                    SetForegroundColor(Color::Red)
                )?,
            }
            // Names come from elsewhere, and must not steer the terminal. What is escaped takes more room.
            let shown = cut(&printable(&line.text), columns.into());
            out.write_all(shown.as_bytes())?;
            queue!(
                out,
                SetAttribute(Attribute::Reset),
                ResetColor,
                Clear(ClearType::UntilNewLine)
            )?;
        }
        queue!(out, Clear(ClearType::FromCursorDown), EndSynchronizedUpdate)?;
        out.flush()
    }

    /// Waits for a key, a signal, or to be woken.
    pub fn wait(&mut self) -> io::Result<Wake> {
        let stdin = io::stdin();
        let mut sources = [
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wakes.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_pressed = sources[0].any() == Some(true);
        self.rest();
        if self.ended.load(Ordering::Relaxed) || is_pressed && is_end(&typed()?) {
            return Ok(Wake::End);
        }
        Ok(Wake::Look)
    }

    /// Forgets every wake so far.
    fn rest(&mut self) {
        let mut bytes = [0; 64];
        while matches!(self.wakes.read(&mut bytes), Ok(count) if count == bytes.len()) {}
    }
}

/// What was typed, past the buffer of the standard library: it is waited for at the terminal.
fn typed() -> io::Result<Vec<u8>> {
    let mut bytes = [0; 64];
    match nix::unistd::read(io::stdin().as_fd(), &mut bytes) {
        Ok(count) => Ok(bytes[..count].to_vec()),
        // The terminal is gone.
        Err(Errno::EIO) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// Whether what was typed ends it: q, Esc, Ctrl-C, or that the terminal is gone. What other keys
/// send begins with the byte of Esc too, and comes in one piece.
fn is_end(typed: &[u8]) -> bool {
    let mut rest = typed;
    loop {
        rest = match rest {
            [] => return typed.is_empty(),
            [ESCAPE] | [b'q' | b'Q' | CTRL_C, ..] => return true,
            [ESCAPE, b'[' | b'O', key @ ..] => {
                let end = key.iter().position(|byte| (0x40..0x7f).contains(byte));
                &key[end.map_or(key.len(), |end| end + 1)..]
            }
            [ESCAPE, _, next @ ..] | [_, next @ ..] => next,
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to be put back.
        let _ = execute!(self.out, EnableLineWrap, Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_end_it_are_told_from_others() {
        for (keys, ends) in [
            (&b"q"[..], true),
            (b"\x1b", true),
            (b"\x03", true),
            (b"", true),
            (b"x", false),
            (b"\x1b[A", false),
            (b"\x1b[15~\x1bOQ\x1bq\x1b[", false),
            (b"\x1b[1;5Cq", true),
            (b"x\x1b[A\x1b", true),
        ] {
            assert_eq!(is_end(keys), ends, "{keys:?}");
        }
    }
}
