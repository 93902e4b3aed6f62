//! The line protocol: one request a line on stdin, one line of JSON back on stdout.
//!
//! `status ID` → cheap checks and the counter; `check ID` → every invariant; `change ID` → other state than before;
//! `quit ID` → `check`, then exit.
//! The reply repeats the id. A rollback may lose a request that was already read, or answer one twice: the
//! asker repeats itself with a new id and passes over replies to old ones. A request is one short write, so a
//! read gets it whole, and nothing of it waits in this process's memory when a snapshot is taken.

use std::sync::Mutex;

use serde_json::{Map, Value, json};

use super::fault::{BROKEN, broken, os_error};

/// What a victim lets the protocol ask about. Invariants that break while nobody asks end the process through
/// [`super::fault::broken`] instead.
pub trait State: Send + Sync {
    /// Grows with the work done; goes back with a rollback.
    fn counter(&self) -> u64;
    /// Cheap checks.
    fn status(&self) -> Result<(), String>;
    /// Every invariant.
    fn check(&self) -> Result<(), String>;
    /// Changes all that a snapshot taken before would bring back; nothing more if it has done so.
    fn change(&self) -> Result<(), String> {
        Err("this victim has nothing to change".into())
    }
    /// More to say: `poke`, `workers`, whatever the victim has.
    fn details(&self) -> Value;
}

/// A victim that has prepared itself.
pub struct Started {
    /// Its invariants.
    pub state: Box<dyn State>,
    /// Work that must run on the main thread (its stack, its identity); never returns. The protocol then runs
    /// on another thread.
    pub main: Option<Box<dyn FnOnce()>>,
    /// Whether to announce readiness; false in the later lives of a victim that runs `execve`.
    pub announce: bool,
}

impl Started {
    /// A victim whose main thread serves the protocol.
    pub fn new(state: impl State + 'static) -> Self {
        Self {
            state: Box::new(state),
            main: None,
            announce: true,
        }
    }
}

/// Held while a request is worked on. Who needs the protocol thread to be idle (to exec, to move the program
/// break under malloc) takes it.
pub static GATE: Mutex<()> = Mutex::new(());

/// Announces readiness and serves until `quit` or the end of stdin.
pub fn run(name: &str, started: Started) -> ! {
    let Started {
        state,
        main,
        announce,
    } = started;
    if announce {
        let mut ready = json!({ "ready": true, "pid": std::process::id(), "victim": name });
        merge(&mut ready, state.details());
        say(&ready);
    }
    match main {
        None => serve(name, state.as_ref()),
        Some(main) => {
            let name = name.to_owned();
            std::thread::spawn(move || serve(&name, state.as_ref()));
            main();
            broken("the main thread's work ended")
        }
    }
}

fn serve(name: &str, state: &dyn State) -> ! {
    let mut buffer = [0u8; 512];
    loop {
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::read(0, buffer.as_mut_ptr().cast(), buffer.len()) };
        match got {
            0 => exit(0),
            1.. => {}
            _ => broken(os_error(
                "read of stdin, with no signal handler on this thread",
            )),
        }
        let _busy = GATE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for line in String::from_utf8_lossy(&buffer[..got as usize]).lines() {
            answer(name, state, line);
        }
    }
}

fn answer(name: &str, state: &dyn State, line: &str) {
    let mut words = line.split_whitespace();
    let verb = words.next().unwrap_or_default();
    let id: Option<u64> = words.next().and_then(|id| id.parse().ok());
    let result = match verb {
        "status" => state.status(),
        "check" | "quit" => state.check(),
        "change" => state.change(),
        "" => return,
        _ => {
            say(&json!({ "id": id, "ok": false, "reason": format!("unknown request {verb:?}") }));
            return;
        }
    };
    let mut reply = json!({
        "id": id,
        "verb": verb,
        "victim": name,
        "pid": std::process::id(),
        "ok": result.is_ok(),
        "reason": result.as_ref().err(),
        "counter": state.counter(),
    });
    merge(&mut reply, state.details());
    say(&reply);
    match (verb, result) {
        (_, Err(reason)) => {
            eprintln!(
                "BROKEN {name} (pid {}): {verb}: {reason}",
                std::process::id()
            );
            exit(BROKEN)
        }
        ("quit", Ok(())) => exit(0),
        _ => {}
    }
}

/// One write, so that a line is never torn between two snapshots (it is far below PIPE_BUF).
fn say(value: &Value) {
    let line = format!("{value}\n");
    // SAFETY: the buffer is valid for its length.
    let wrote = unsafe { libc::write(1, line.as_ptr().cast(), line.len()) };
    if wrote != line.len() as isize {
        match std::io::Error::last_os_error() {
            // Nobody listens any more.
            error if error.kind() == std::io::ErrorKind::BrokenPipe => exit(0),
            error => broken(format_args!("write of a reply gave {wrote}: {error}")),
        }
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        let more: Map<String, Value> = more;
        into.extend(more);
    }
}

/// Leaves without running destructors: the workers still use what they would free.
fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}
