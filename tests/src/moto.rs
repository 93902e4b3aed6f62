//! An S3 server: `moto_server`, of the Python package moto.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::background::Background;
use crate::netns::free_port;
use crate::{Ksnap, paths, service};

/// A server with one empty bucket, in memory. Killed when dropped.
pub struct Moto {
    _server: Background,
    port: u16,
}

impl Moto {
    /// The program: where `cargo xtask test` has installed it, or on PATH.
    pub fn program() -> Option<PathBuf> {
        service::installed("moto/bin/moto_server").or_else(|| paths::program("moto_server"))
    }

    /// Starts a server, and makes a bucket.
    pub fn start(bucket: &str) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(Self::program().context("there is no moto_server")?);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let server = service::start(command, port)?;
        let answer = service::ask(
            port,
            &format!(
                "PUT /{bucket} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            ),
        )?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(Self {
            _server: server,
            port,
        })
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
