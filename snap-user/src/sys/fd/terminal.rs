//! Terminals: `ioctl_tty(2)`.

use super::{Result, check};
use crate::model::Terminal;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const TCGETS2: libc::c_ulong = 0x802c_542a;
const TCSETS2: libc::c_ulong = 0x402c_542b;
/// Bytes of the kernel's `struct termios2`.
const TERMIOS2: usize = 44;
const TIOCGDEV: libc::c_ulong = 0x8004_5432;
/// Major number of `/dev/tty` (minor 0) and `/dev/ptmx` (minor 2).
const TTY_AUX: u32 = 5;
/// Terminals that are held back while one with a certain number is looked for.
const MOST_SPARE: usize = 256;

/// Throws away what a side of a pseudo-terminal has received and not read, and what it has sent and the other side not
/// received.
pub fn flush_terminal(fd: impl AsFd) -> Result<()> {
    // SAFETY: the request takes a number.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TCFLSH, libc::TCIOFLUSH) };
    check("ioctl(TCFLSH)", &fd, done).map(drop)
}

/// Settings and size of the terminal with this device number; `None` where it is none. What was opened as `/dev/tty`
/// has the number of the terminal that it leads to.
pub fn terminal(fd: impl AsFd, device: (u32, u32)) -> Result<Option<Terminal>> {
    let raw = fd.as_fd().as_raw_fd();
    let mut termios = vec![0u8; TERMIOS2];
    // SAFETY: the buffer has the size that the number of the request says.
    if unsafe { libc::ioctl(raw, TCGETS2, termios.as_mut_ptr()) } != 0 {
        return match std::io::Error::last_os_error().raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => Ok(None),
            _ => check("ioctl(TCGETS2)", &fd, -1).map(|_| None),
        };
    }
    let mut size = [0u16; 4];
    // SAFETY: `struct winsize` is four 16-bit numbers.
    let r = unsafe { libc::ioctl(raw, libc::TIOCGWINSZ, size.as_mut_ptr()) };
    check("ioctl(TIOCGWINSZ)", &fd, r)?;
    Ok(Some(Terminal {
        device: match device == (TTY_AUX, 0) {
            true => terminal_device(&fd).map_or(device, device_numbers),
            false => device,
        },
        termios,
        size,
        master_of: match device == (TTY_AUX, 2) {
            true => master_of(&fd).ok(),
            false => None,
        },
    }))
}

/// Major and minor number of a terminal as the kernel writes it into `/proc/PID/stat` and tells it of descriptors.
pub fn device_numbers(encoded: u32) -> (u32, u32) {
    let device = u64::from(encoded);
    (rustix::fs::major(device), rustix::fs::minor(device))
}

/// Device number of the terminal behind a descriptor, `/dev/tty` being none of its own; of a master, that of its other
/// side.
pub fn terminal_device(fd: impl AsFd) -> Result<u32> {
    let mut device: libc::c_uint = 0;
    // SAFETY: TIOCGDEV writes one unsigned int, which is live.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), TIOCGDEV, &mut device) };
    check("ioctl(TIOCGDEV)", &fd, r)?;
    Ok(device)
}

/// Opens a new pseudo-terminal by a master device, whose other side has this number if that is free: the kernel gives
/// the lowest. `open` opens the device.
///
/// # Errors
/// Those of the first opening.
pub fn master_with_number(open: impl Fn() -> Result<OwnedFd>, number: u32) -> Result<OwnedFd> {
    // Lower ones are held until it is found.
    let mut spare = Vec::new();
    let first = open()?;
    let mut last = master_of(&first)?;
    while last < number && spare.len() < MOST_SPARE {
        // No more terminals, or descriptors: another number does as well.
        let Ok(next) = open() else { break };
        last = master_of(&next)?;
        if last == number {
            return Ok(next);
        }
        spare.push(next);
    }
    Ok(first)
}

/// Number of the other side of a pseudo-terminal's master in `/dev/pts`.
pub fn master_of(fd: impl AsFd) -> Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: TIOCGPTN writes one unsigned int, which is live.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGPTN, &mut number) };
    check("ioctl(TIOCGPTN)", &fd, r)?;
    Ok(number)
}

/// Sets settings and size. The terminal's own process group gets SIGWINCH when the size differs.
pub fn set_terminal(fd: impl AsFd, wanted: &Terminal) -> Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    if wanted.termios.len() == TERMIOS2 {
        // SAFETY: the buffer has the size that the number of the request says.
        let r = unsafe { libc::ioctl(raw, TCSETS2, wanted.termios.as_ptr()) };
        check("ioctl(TCSETS2)", &fd, r)?;
    }
    // SAFETY: `struct winsize` is four 16-bit numbers.
    let r = unsafe { libc::ioctl(raw, libc::TIOCSWINSZ, wanted.size.as_ptr()) };
    check("ioctl(TIOCSWINSZ)", &fd, r).map(drop)
}

/// Lets the other side of a new pseudo-terminal be opened.
pub fn unlock_master(fd: impl AsFd) -> Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int, which is live.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCSPTLCK, &off) };
    check("ioctl(TIOCSPTLCK)", &fd, r).map(drop)
}

/// Opens the other side of a pseudo-terminal's master, whatever is mounted at `/dev/pts` (Linux 4.13).
pub fn open_other_side(fd: impl AsFd, flags: u32) -> Result<OwnedFd> {
    let access = flags as i32 & (libc::O_ACCMODE | libc::O_NONBLOCK);
    let flags = access | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the request takes flags in place of a pointer.
    let r = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let side = check("ioctl(TIOCGPTPEER)", &fd, r)?;
    // SAFETY: just made and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(side as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_with_settings_and_size() {
        let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
        let master =
            crate::sys::open_in_root(std::process::id() as i32, "/dev/ptmx", flags).unwrap();
        unlock_master(&master).unwrap();
        let side = open_other_side(&master, flags).unwrap();
        let mut wanted = terminal(&side, (136, 0)).unwrap().unwrap();
        wanted.size = [33, 77, 0, 0];
        // ECHO in c_lflag, the fourth 32-bit word.
        wanted.termios[12] ^= libc::ECHO as u8;
        set_terminal(&side, &wanted).unwrap();
        assert_eq!(terminal(&side, (136, 0)).unwrap().unwrap(), wanted);
        let other = terminal(&master, (5, 2)).unwrap().unwrap();
        assert_eq!(
            (other.size, other.master_of.is_some()),
            ([33, 77, 0, 0], true)
        );
        let file = tempfile::tempfile().unwrap();
        assert_eq!(terminal(file, (0, 0)).unwrap(), None);
        let number = master_of(&master).unwrap();
        for end in [&master, &side] {
            let device = terminal_device(end).unwrap();
            assert_eq!(device_numbers(device), (136, number));
        }
    }

    #[test]
    fn device_numbers_are_taken_apart() {
        assert_eq!(device_numbers(0x8803), (136, 3));
        assert_eq!(device_numbers(0x0410_8801), (136, 0x4101));
    }

    #[test]
    fn a_terminal_gets_its_number_again_where_that_is_free() {
        let open = || {
            let flags = (libc::O_RDWR | libc::O_NOCTTY) as u32;
            crate::sys::open_in_root(std::process::id() as i32, "/dev/ptmx", flags)
        };
        let held: Vec<OwnedFd> = (0..8).map(|_| open().unwrap()).collect();
        let numbers: Vec<u32> = held.iter().map(|fd| master_of(fd).unwrap()).collect();
        let highest = *numbers.iter().max().unwrap();
        // All are free but the highest.
        let (kept, freed): (Vec<_>, Vec<_>) = held
            .into_iter()
            .partition(|fd| master_of(fd).unwrap() == highest);
        drop(freed);
        let taken = master_with_number(open, highest).unwrap();
        assert_ne!(master_of(&taken).unwrap(), highest);
        drop((taken, kept));
        // Others may take a number between two looks.
        let again = (0..20).any(|_| {
            let made = master_with_number(open, highest).unwrap();
            master_of(&made).unwrap() == highest
        });
        assert!(again, "never {highest}");
    }
}
