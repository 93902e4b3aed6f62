//! An S3 server: `moto_server`, of the Python package moto.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::background::Background;
use crate::netns::free_port;
use crate::{Ksnap, paths};

/// A server with one empty bucket, in memory. Killed when dropped.
pub struct Moto {
    server: Background,
    port: u16,
}

impl Moto {
    /// The program: where `cargo xtask test` has installed it, or on PATH.
    pub fn program() -> Option<PathBuf> {
        // Beside target/<profile>.
        let installed = paths::binaries()
            .ok()?
            .parent()?
            .join("moto/bin/moto_server");
        match installed.is_file() {
            true => Some(installed),
            false => paths::program("moto_server"),
        }
    }

    /// Starts a server, and makes a bucket.
    pub fn start(bucket: &str) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(Self::program().context("there is no moto_server")?);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let mut moto = Self {
            server: Background::start(command)?,
            port,
        };
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if !moto.server.running()? || Instant::now() > end {
                bail!("moto_server does not answer: {}", moto.server.stderr());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        write!(
            stream,
            "PUT /{bucket} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(moto)
    }

    /// Tells ksnap where the server is, and keys, which it does not look at.
    pub fn equip(&self, ksnap: Ksnap) -> Ksnap {
        ksnap
            .with_variable(
                "AWS_ENDPOINT_URL",
                format!("http://127.0.0.1:{}", self.port).into(),
            )
            .with_variable("AWS_ALLOW_HTTP", "true".into())
            .with_variable("AWS_ACCESS_KEY_ID", "test".into())
            .with_variable("AWS_SECRET_ACCESS_KEY", "test".into())
            .with_variable("AWS_REGION", "us-east-1".into())
    }
}
