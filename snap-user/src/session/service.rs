//! Everything that a watcher waits for besides its target's memory: signals, the target's end,
//! commands on its socket. Runs on a thread of its own, so that the tracer's thread never waits.

use super::control::{Reply, Request, short_path, socket_path};
use super::{Ended, Result, SessionError};
use crate::sys::PidFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs::File;
use std::io::{PipeReader, PipeWriter};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Longest request line taken from the socket, in bytes.
const LONGEST_LINE: u64 = 64 << 10;

/// What the tracer's thread is told.
pub enum Command {
    /// A command on the socket; its answer goes back there.
    Ask(Request, oneshot::Sender<Reply>),
    /// End watching, for this reason.
    Stop(Ended),
    /// The target has ended.
    TargetExited,
}

/// The running service. Ends on drop, and takes its socket away.
pub struct Service {
    /// Dropping it tells both threads.
    end: Option<(oneshot::Sender<()>, PipeWriter)>,
    threads: Vec<JoinHandle<()>>,
    socket: PathBuf,
}

impl Service {
    /// Starts serving one watched process. `keep_on_interrupt`: a Ctrl-C is meant for the command
    /// that runs in the same terminal, and does not end the watching.
    pub fn start(
        store: &Path,
        pid: i32,
        pidfd: PidFd,
        keep_on_interrupt: bool,
        commands: Sender<Command>,
    ) -> Result<Self> {
        let socket = socket_path(store, pid);
        let io = |what: &str| SessionError::io(format!("{what} {}", socket.display()));
        let folder = File::open(store).map_err(io("open the folder of"))?;
        let address = short_path(&folder, pid);
        // Left by a watcher that was killed; one that lives holds the session's lock.
        let _ = std::fs::remove_file(&address);
        let listener = listen(&address)
            .map_err(std::io::Error::from)
            .map_err(io("bind"))?;
        listener.set_nonblocking(true).map_err(io("set up"))?;
        let (ended_pipe, end_pipe) = std::io::pipe().map_err(io("set up"))?;
        let watcher_commands = commands.clone();
        let watcher = std::thread::Builder::new()
            .name("ksnap-exit".into())
            .spawn(move || wait_for_exit(&pidfd, &ended_pipe, &watcher_commands))
            .map_err(io("start the thread for"))?;
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let server = std::thread::Builder::new()
            .name("ksnap-service".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => {
                        runtime.block_on(serve(
                            listener,
                            keep_on_interrupt,
                            commands,
                            ended,
                            ready,
                        ));
                    }
                    Err(e) => tracing::error!("no service thread: {e}"),
                }
            })
            .map_err(io("start the thread for"))?;
        // From here on a signal ends the watching, and not ksnap. Where that cannot be had, it is said.
        let _ = is_ready.recv();
        Ok(Self {
            end: Some((end, end_pipe)),
            threads: vec![watcher, server],
            socket,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.end.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Listens under a name that is the owner's alone from its first moment: it gets the permissions that the socket has by
/// then. A umask would be that of all threads, which make files and folders meanwhile.
fn listen(address: &Path) -> rustix::io::Result<std::os::unix::net::UnixListener> {
    let flags = SocketFlags::CLOEXEC;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    net::bind(&socket, &SocketAddrUnix::new(address)?)?;
    net::listen(&socket, 128)?;
    Ok(socket.into())
}

/// Tells when the process ends. Returns then, or when the other end of `ended` is closed.
fn wait_for_exit(pidfd: &PidFd, ended: &PipeReader, commands: &Sender<Command>) {
    let mut fds = [
        PollFd::new(pidfd, PollFlags::IN),
        PollFd::new(ended, PollFlags::IN),
    ];
    while let Err(e) = poll(&mut fds, None) {
        if e != rustix::io::Errno::INTR {
            return tracing::error!("the end of the process is not noticed: poll: {e}");
        }
    }
    if !fds[0].revents().is_empty() {
        let _ = commands.send(Command::TargetExited);
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    keep_on_interrupt: bool,
    commands: Sender<Command>,
    mut ended: oneshot::Receiver<()>,
    ready: Sender<()>,
) {
    let set_up = || -> std::io::Result<_> {
        Ok((
            UnixListener::from_std(listener)?,
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            // From whoever sees the power fail, as init(8) understands it.
            signal(SignalKind::from_raw(libc::SIGPWR))?,
        ))
    };
    let (listener, mut interrupt, mut terminate, mut power) = match set_up() {
        Ok(all) => all,
        Err(e) => return tracing::error!("commands and signals are not served: {e}"),
    };
    let _ = ready.send(());
    loop {
        tokio::select! {
            _ = &mut ended => return,
            _ = interrupt.recv() => if !keep_on_interrupt {
                let _ = commands.send(Command::Stop(Ended::Interrupted));
            },
            _ = terminate.recv() => { let _ = commands.send(Command::Stop(Ended::Terminated)); }
            _ = power.recv() => { let _ = commands.send(Command::Stop(Ended::Terminated)); }
            Ok((stream, _)) = listener.accept() => {
                tokio::spawn(converse(stream, commands.clone()));
            }
        }
    }
}

async fn converse(stream: UnixStream, commands: Sender<Command>) {
    use tokio::io::AsyncReadExt;
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input.take(LONGEST_LINE));
    let mut line = String::new();
    while matches!(input.read_line(&mut line).await, Ok(n) if n > 0) {
        let reply = match serde_json::from_str::<Request>(&line) {
            Err(e) => Reply::Failed(format!("the request cannot be read: {e}")),
            Ok(request) => {
                let (answer, answered) = oneshot::channel();
                let gone = || Reply::Failed("the watching has ended".into());
                match commands.send(Command::Ask(request, answer)) {
                    Ok(()) => answered.await.unwrap_or_else(|_| gone()),
                    Err(_) => gone(),
                }
            }
        };
        let mut text = serde_json::to_string(&reply).expect("plain data");
        text.push('\n');
        if output.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        line.clear();
        input.get_mut().set_limit(LONGEST_LINE);
    }
}
