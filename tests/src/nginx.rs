//! nginx with a master and two workers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::background::Background;
use crate::netns::free_port;
use crate::paths;
use crate::tree::children_of;

const LIMIT: Duration = Duration::from_secs(60);
/// What it says.
const PAGE: &str = "hello from a file";

/// A running server.
pub struct Nginx {
    process: Background,
    port: u16,
    _folder: TempDir,
}

impl Nginx {
    /// Starts it, and waits until it answers and has both workers.
    pub fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // The workers are other users.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let port = free_port()?;
        let at = folder.path().display().to_string();
        std::fs::write(folder.path().join("page"), PAGE)?;
        let config = format!(
            "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{ access_log {at}/access.log; client_body_temp_path {at}/a; proxy_temp_path {at}/b;\n\
             fastcgi_temp_path {at}/c; uwsgi_temp_path {at}/d; scgi_temp_path {at}/e;\n\
             server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new(paths::program("nginx").context("no nginx")?);
        command.arg("-c").arg(&file).arg("-p").arg(folder.path());
        let process = Background::start(command)?;
        let server = Self {
            process,
            port,
            _folder: folder,
        };
        let end = Instant::now() + LIMIT;
        while !server.answers() || !server.has_workers() {
            let said = server.process.stderr();
            ensure!(Instant::now() < end, "nginx does not answer: {said}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// It answers when one worker is there. Each begins as a copy of the master, and then calls itself what it is.
    fn has_workers(&self) -> bool {
        let workers = children_of(self.process.pid()).unwrap_or_default();
        let is_worker = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            name.is_ok_and(|name| name.contains("worker process"))
        };
        workers.len() == 2 && workers.iter().all(is_worker)
    }

    /// The master.
    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// Demands that it answers so many requests, one after the other.
    pub fn answers_all(&self, requests: usize) -> Result<()> {
        (0..requests).try_for_each(|n| {
            ensure!(self.answers(), "request {n} has no answer");
            Ok(())
        })
    }

    /// Whether it answers, and rightly.
    pub fn answers(&self) -> bool {
        self.page().is_ok_and(|page| page.contains(PAGE))
    }

    /// What whoever listens at its port answers.
    pub fn page(&self) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}
