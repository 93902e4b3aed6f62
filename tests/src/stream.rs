//! Two programs that send each other a stream of bytes, each of which knows what the other one sends.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tempfile::TempDir;

use crate::background::Background;
use crate::python::Python;

/// The script: it connects, sends its own stream with one thread and compares what it reads with another, slowly. At the
/// end it sends what it thinks of the other one's stream.
const SCRIPT: &str = r#"
import socket, threading, time, sys
def block(seed, n):
    return bytes((seed + n * 7 + i * 31 + (i * i >> 5)) & 255 for i in range(4096))
address, port, blocks = ADDRESS, PORT, BLOCKS
s = socket.create_connection((address, port))
# Others are in whichever network it is, too.
pair = socket.socketpair()
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
verdict = []
def receive():
    for n in range(blocks):
        got = b""
        while len(got) < 4096:
            more = s.recv(4096 - len(got))
            if not more:
                verdict.append(b"end before block %d" % n)
                return
            got += more
        if got != block(3, n):
            verdict.append(b"wrong block %d" % n)
            return
        time.sleep(PAUSE)
    verdict.append(b"right")
t = threading.Thread(target=receive)
t.start()
for n in range(blocks):
    s.sendall(block(5, n))
t.join()
s.sendall(verdict[0].ljust(64))
s.close()
"#;

/// Bytes of a block.
const BLOCK: usize = 4096;

fn block(seed: u64, number: u64) -> Vec<u8> {
    let byte = |i: u64| (seed + number * 7 + i * 31 + ((i * i) >> 5)) as u8;
    (0..BLOCK as u64).map(byte).collect()
}

/// The script that runs, and the other side of its connection, which is in this process.
pub struct Stream {
    /// The script.
    pub program: Background,
    connection: TcpStream,
    received: Arc<AtomicU64>,
    holds: Arc<AtomicBool>,
    writer: JoinHandle<Result<()>>,
    /// Until it is known how it ended.
    reader: Option<JoinHandle<Result<String>>>,
    /// What the script says at the end.
    verdict: Option<String>,
    _folder: TempDir,
}

impl Stream {
    /// Has the script connect to a listener. `inside` wraps its command, as one of another machine; it takes so many
    /// blocks of 4 KiB in each direction, and pauses behind each that it has read.
    pub fn start(
        listener: &TcpListener,
        blocks: u64,
        pause: Duration,
        inside: impl FnOnce(Command) -> Command,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("ksnap-stream-").tempdir()?;
        let file = folder.path().join("stream.py");
        let at = listener.local_addr()?;
        let ip: IpAddr = at.ip();
        let text = SCRIPT
            .replace("ADDRESS", &format!("\"{ip}\""))
            .replace("PORT", &at.port().to_string())
            .replace("BLOCKS", &blocks.to_string())
            .replace("PAUSE", &pause.as_secs_f64().to_string());
        std::fs::write(&file, text)?;
        let mut command = Command::new(Python::interpreter()?);
        command.arg("-u").arg(file).current_dir(folder.path());
        let program = Background::start(inside(command))?;
        let (connection, _) = listener.accept()?;
        connection.set_read_timeout(Some(Duration::from_secs(60)))?;
        connection.set_write_timeout(Some(Duration::from_secs(60)))?;
        let received = Arc::new(AtomicU64::new(0));
        let holds = Arc::new(AtomicBool::new(false));
        let mut to = connection.try_clone()?;
        let writer = std::thread::spawn(move || {
            for number in 0..blocks {
                to.write_all(&block(3, number))
                    .with_context(|| format!("send block {number} of {blocks}"))?;
            }
            Ok(())
        });
        let (count, wait) = (received.clone(), holds.clone());
        let mut from = connection.try_clone()?;
        let reader = std::thread::spawn(move || {
            let mut got = [0; BLOCK];
            for number in 0..blocks {
                while wait.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                from.read_exact(&mut got)
                    .with_context(|| format!("receive block {number} of {blocks}"))?;
                ensure!(got[..] == block(5, number), "block {number} is wrong");
                count.fetch_add(1, Ordering::Relaxed);
            }
            let mut verdict = [0; 64];
            from.read_exact(&mut verdict).context("its verdict")?;
            Ok(String::from_utf8_lossy(&verdict).trim().to_owned())
        });
        Ok(Self {
            program,
            connection,
            received,
            holds,
            writer,
            reader: Some(reader),
            verdict: None,
            _folder: folder,
        })
    }

    /// The script's process id.
    pub fn pid(&self) -> i32 {
        self.program.pid()
    }

    /// Blocks that this side has received.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Reads nothing any more, so that what the script sends waits, until told otherwise.
    pub fn hold(&self, on: bool) {
        self.holds.store(on, Ordering::Relaxed);
    }

    /// Waits until this side has received so many blocks more, or all; the error of its reader where that has failed.
    pub fn goes_on(&mut self, blocks: u64) -> Result<()> {
        let wanted = self.received() + blocks;
        for _ in 0..6000 {
            if self.received() >= wanted {
                return Ok(());
            }
            if let Some(reader) = self.reader.take_if(|reader| reader.is_finished()) {
                self.verdict = Some(joined(reader)?);
            }
            if self.verdict.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(anyhow!(
            "the stream stands still at block {} of this side",
            self.received()
        ))
    }

    /// Waits for the end of both streams, and compares what both sides think of them.
    pub fn finish(self) -> Result<()> {
        let verdict = match (self.verdict, self.reader) {
            (Some(verdict), _) => Ok(verdict),
            (None, Some(reader)) => joined(reader),
            (None, None) => Err(anyhow!("the reader of the stream failed before")),
        };
        drop(self.connection);
        let verdict = verdict?;
        joined(self.writer)?;
        ensure!(verdict == "right", "the script says: {verdict}");
        Ok(())
    }
}

/// What a thread of the stream came to.
fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|e| anyhow!("a thread of the stream panicked: {e:?}"))?
}
