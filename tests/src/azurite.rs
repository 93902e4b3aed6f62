//! An Azure Blob server: `azurite-blob`, of the npm package azurite.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::background::Background;
use crate::netns::free_port;
use crate::{Ksnap, paths, service};

/// The account that Azurite has, and its key, which is the same everywhere and in its documentation.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Makes a container. A request that does that has to be signed: an HMAC over what is asked for.
const MAKE_CONTAINER: &str = r#"
const [port, account, key, name] = process.argv.slice(1);
const date = new Date().toUTCString(), version = "2021-12-02", path = `/${account}/${name}`;
const text = `PUT${"\n".repeat(12)}x-ms-date:${date}\nx-ms-version:${version}\n/${account}${path}\nrestype:container`;
const hmac = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(text, "utf8").digest("base64");
const headers = { "x-ms-date": date, "x-ms-version": version, "Content-Length": 0,
                  Authorization: `SharedKey ${account}:${hmac}` };
const options = { host: "127.0.0.1", port, method: "PUT", path: `${path}?restype=container`, headers };
require("http").request(options, (answer) => {
  console.log(answer.statusCode);
  process.exit(answer.statusCode === 201 ? 0 : 1);
}).end();
"#;

/// A server with one empty container, in memory. Killed when dropped.
pub struct Azurite {
    _server: Background,
    port: u16,
}

impl Azurite {
    /// The program, which node runs: where `cargo xtask test` has installed it, or on PATH.
    pub fn program() -> Option<PathBuf> {
        paths::program("node")?;
        service::installed("azurite/node_modules/azurite/dist/src/blob/main.js")
            .or_else(|| paths::program("azurite-blob"))
    }

    /// Starts a server, and makes a container.
    pub fn start(container: &str) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("node");
        command
            .arg(Self::program().context("there is no azurite-blob")?)
            .args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()])
            // It need not know the version of the protocol that a client says, as long as it has what that asks for.
            .args(["--inMemoryPersistence", "--skipApiVersionCheck"])
            .args(["--silent", "--disableTelemetry"]);
        let server = service::start(command, port)?;
        let made = Command::new("node")
            .args(["-e", MAKE_CONTAINER, &port.to_string()])
            .args([ACCOUNT, KEY, container])
            .output()?;
        ensure!(made.status.success(), "{made:?}");
        Ok(Self {
            _server: server,
            port,
        })
    }

    /// Tells ksnap where the server is, and the key.
    pub fn equip(&self, ksnap: Ksnap) -> Ksnap {
        ksnap
            .with_variable(
                "AZURE_STORAGE_ENDPOINT",
                format!("http://127.0.0.1:{}/{ACCOUNT}", self.port).into(),
            )
            .with_variable("AZURE_ALLOW_HTTP", "true".into())
            .with_variable("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.into())
            .with_variable("AZURE_STORAGE_ACCOUNT_KEY", KEY.into())
    }
}
