//! Servers of object storage, as they are started and asked.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::background::Background;
use crate::paths;

/// A program that `cargo xtask test` has installed, by its place below the folder of the build.
pub fn installed(place: &str) -> Option<PathBuf> {
    // Beside target/<profile>.
    let program = paths::binaries().ok()?.parent()?.join(place);
    program.is_file().then_some(program)
}

/// Starts a server, and waits until it takes connections.
pub fn start(command: Command, port: u16) -> Result<Background> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut server = Background::start(command)?;
    let end = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if !server.running()? || Instant::now() > end {
            bail!("{name} does not answer: {}", server.stderr());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

/// Asks a server, and gives its whole answer. The request has to say that the connection is closed.
pub fn ask(port: u16, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
