//! Arguments of clone3(2).

/// `CLONE_CLEAR_SIGHAND` (clone(2)).
pub(super) const CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// How a process or thread is to be made: `struct clone_args`, and the array of one id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloneArgs {
    /// `CLONE_*`
    pub flags: u64,
    /// What its parent gets at its end; 0 for nothing, as for threads.
    pub exit_signal: u64,
    /// Its id in its PID namespace; `None` for whichever the kernel gives.
    pub id: Option<i32>,
}

impl CloneArgs {
    /// Size of the structure (include/uapi/linux/sched.h).
    pub(super) const SIZE: u64 = 80;
    /// With the array behind it.
    pub(super) const LEN: u64 = Self::SIZE + 8;

    /// As the kernel reads them at `address`, where the array of ids lies right behind the structure.
    pub(super) fn bytes_at(&self, address: u64) -> Vec<u8> {
        const FLAGS: usize = 0;
        const EXIT_SIGNAL: usize = 4;
        const SET_TID: usize = 8;
        const SET_TID_SIZE: usize = 9;
        let mut words = [0u64; Self::LEN as usize / 8];
        words[FLAGS] = self.flags;
        words[EXIT_SIGNAL] = self.exit_signal;
        if let Some(id) = self.id {
            words[SET_TID] = address + Self::SIZE;
            words[SET_TID_SIZE] = 1;
            words[Self::SIZE as usize / 8] = u64::from(id as u32);
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Who is to be made, for an error.
    pub(super) fn what(&self) -> String {
        let kind = match self.flags & libc::CLONE_THREAD as u64 {
            0 => "process",
            _ => "thread",
        };
        match self.id {
            Some(id) => format!("{kind} {id}"),
            None => format!("a new {kind}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_lies_behind_the_structure_that_points_at_it() {
        let args = CloneArgs {
            flags: libc::CLONE_THREAD as u64,
            exit_signal: 17,
            id: Some(4711),
        };
        let bytes = args.bytes_at(0x1000);
        assert_eq!(bytes.len(), 88);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((word(0), word(32)), (libc::CLONE_THREAD as u64, 17));
        assert_eq!((word(64), word(72), word(80)), (0x1050, 1, 4711));
        assert_eq!(args.what(), "thread 4711");
        let any = CloneArgs { id: None, ..args };
        assert!(any.bytes_at(0x1000)[64..].iter().all(|byte| *byte == 0));
        assert_eq!(CloneArgs::default().what(), "a new process");
    }
}
