//! Two things at once.

use std::panic::resume_unwind;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Does `other` on a thread of its own while this one does `own`: afterwards, where no thread can be started. A panic
/// of either is one of the caller.
pub fn side_by_side<T: Send, R>(
    other: impl FnOnce() -> T + Send,
    own: impl FnOnce() -> R,
) -> (T, R) {
    let job = Mutex::new(Some(other));
    let do_it = || {
        let job = job.lock().unwrap_or_else(PoisonError::into_inner).take();
        job.map(|other| other())
    };
    thread::scope(|scope| {
        let helper = thread::Builder::new()
            .name("ksnap-beside".to_owned())
            .spawn_scoped(scope, do_it);
        let mine = own();
        let done = match helper {
            Ok(helper) => helper.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => do_it(),
        };
        (done.expect("nobody else has done it"), mine)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_are_done_and_each_may_wait_for_the_other() {
        let (tell, told) = std::sync::mpsc::channel();
        let (other, own) = side_by_side(
            move || told.recv().map(|n: u32| n + 1),
            || tell.send(41).is_ok(),
        );
        assert_eq!((other, own), (Ok(42), true));
    }

    #[test]
    #[should_panic(expected = "of the other")]
    fn a_panic_of_the_other_is_not_lost() {
        side_by_side(|| panic!("of the other"), || ());
    }
}
