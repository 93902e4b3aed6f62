//! Pseudo-terminals.

use super::Held;
use super::calls::*;

struct Terminal {
    master: i32,
    side: i32,
    /// Closed by the change.
    closed: [i32; 2],
}

fn pty(at: i32) -> Done<[i32; 2]> {
    let master = open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    let off = 0;
    // SAFETY: the request reads one int, which is live.
    must("ioctl(TIOCSPTLCK)", unsafe {
        libc::ioctl(master, libc::TIOCSPTLCK, &off)
    })?;
    // SAFETY: the request takes flags in place of a pointer.
    let side = must("ioctl(TIOCGPTPEER)", unsafe {
        libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY)
    })?;
    Ok([moved(master, at, 0)?, moved(side, at + 1, libc::O_CLOEXEC)?])
}

fn settings(fd: i32) -> Done<libc::termios> {
    // SAFETY: zeroed is a valid structure, which the call fills.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        must("tcgetattr", libc::tcgetattr(fd, &mut termios))?;
        Ok(termios)
    }
}

fn set(fd: i32, raw: bool, rows: u16) -> Done {
    let mut termios = settings(fd)?;
    let bits = libc::ICANON | libc::ECHO;
    termios.c_lflag = if raw {
        termios.c_lflag & !bits
    } else {
        termios.c_lflag | bits
    };
    termios.c_oflag &= !libc::OPOST;
    let size = libc::winsize {
        ws_row: rows,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both structures are live.
    unsafe {
        must("tcsetattr", libc::tcsetattr(fd, libc::TCSANOW, &termios))?;
        must(
            "ioctl(TIOCSWINSZ)",
            libc::ioctl(fd, libc::TIOCSWINSZ, &size),
        )?;
    }
    Ok(())
}

fn is_set(fd: i32, raw: bool, rows: u16) -> Done {
    let termios = settings(fd)?;
    same(
        "raw",
        termios.c_lflag & libc::ICANON == 0 && termios.c_lflag & libc::ECHO == 0,
        raw,
    )?;
    // SAFETY: zeroed is a valid structure, which the call fills.
    let size = unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        must(
            "ioctl(TIOCGWINSZ)",
            libc::ioctl(fd, libc::TIOCGWINSZ, &mut size),
        )?;
        size
    };
    same("size", (size.ws_row, size.ws_col), (rows, 132))
}

pub fn terminal() -> Done<Box<dyn Held>> {
    let (first, closed) = (pty(60)?, pty(62)?);
    set(first[1], true, 50)?;
    set(closed[1], true, 70)?;
    Ok(Box::new(Terminal {
        master: first[0],
        side: first[1],
        closed,
    }))
}

impl Held for Terminal {
    fn change(&mut self) -> Done {
        set(self.side, false, 20)?;
        close(self.closed[0])?;
        close(self.closed[1])
    }

    fn check(&mut self, changed: bool) -> Done {
        is_set(self.side, !changed, if changed { 20 } else { 50 })?;
        write(self.side, b"out")?;
        same(
            "what the program printed",
            read(self.master, 10)?,
            b"out".to_vec(),
        )?;
        for fd in self.closed {
            same("the other one is open", is_open(fd), !changed)?;
        }
        if changed {
            return Ok(());
        }
        is_set(self.closed[1], true, 70)?;
        write(self.closed[0], b"typed")?;
        same(
            "what was typed",
            read(self.closed[1], 10)?,
            b"typed".to_vec(),
        )?;
        same("close on exec", cloexec(self.closed[1])?, true)
    }
}
