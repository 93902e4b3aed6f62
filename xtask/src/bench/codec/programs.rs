//! Real programs, each with something to do.

use crate::host;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tests::{Background, Python, Redis};

/// How long a program works before its memory is looked at: it has its data by then, and goes on changing it.
const WARM_UP: Duration = Duration::from_secs(3);
/// How long a database may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program whose memory is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Redis,
    Python,
    Java,
    Postgres,
    Node,
}

/// The program and its load; both end when this is dropped, the load first.
pub enum Running {
    Redis {
        _load: Background,
        server: Box<Redis>,
    },
    Python(Python),
    One(
        Background,
        #[allow(dead_code, reason = "its files")] TempDir,
    ),
    Postgres {
        _load: Background,
        backend: i32,
        _server: Server,
    },
}

impl Running {
    /// The process whose memory is looked at.
    pub fn pid(&self) -> i32 {
        match self {
            Self::Redis { server, .. } => server.pid(),
            Self::Python(python) => python.pid(),
            Self::One(process, _) => process.pid(),
            Self::Postgres { backend, .. } => *backend,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "redis-server",
            Self::Python => "python3",
            Self::Java => "java",
            Self::Postgres => "postgres",
            Self::Node => "node",
        })
    }
}

impl Program {
    pub const ALL: [Self; 5] = [
        Self::Redis,
        Self::Python,
        Self::Java,
        Self::Postgres,
        Self::Node,
    ];

    /// What is not installed, and how to get it.
    pub fn missing(self) -> Option<String> {
        let lacks = |program: &str, package: &str| {
            host::find(program)
                .is_none()
                .then(|| format!("{program}; apt-get install {package}"))
        };
        match self {
            Self::Redis => lacks("redis-server", "redis-server")
                .or_else(|| lacks("redis-benchmark", "redis-tools")),
            Self::Python => lacks("python3", "python3"),
            Self::Java => lacks("java", "default-jdk-headless"),
            Self::Node => lacks("node", "nodejs"),
            Self::Postgres if !host::is_root() => Some("root, to run it as its own user".into()),
            Self::Postgres => match Server::folder() {
                Some(_) => lacks("pgbench", "postgresql-contrib"),
                None => Some("its programs; apt-get install postgresql".into()),
            },
        }
    }

    /// Starts it and its load, and lets them work a while.
    pub fn start(self) -> Result<Running> {
        let running = match self {
            Self::Redis => redis()?,
            Self::Python => Running::Python(Python::script(PYTHON)?),
            Self::Java => script("java", &["-Xmx96m"], "Load.java", JAVA)?,
            Self::Node => script("node", &[], "load.js", NODE)?,
            Self::Postgres => return postgres(),
        };
        std::thread::sleep(WARM_UP);
        Ok(running)
    }
}

fn redis() -> Result<Running> {
    let server = Box::new(Redis::start()?);
    let keys = ["-r", "50000", "-d", "100", "-q"];
    let fill = [
        &["-t", "set,lpush,hset,zadd,incr", "-n", "60000"],
        &keys[..],
    ]
    .concat();
    server.load(&fill)?.finish(PATIENCE)?.success()?;
    let work = [&["-t", "set,incr,hset,zadd,lpush", "-l"], &keys[..]].concat();
    Ok(Running::Redis {
        _load: server.load(&work)?,
        server,
    })
}

fn script(program: &str, options: &[&str], name: &str, text: &str) -> Result<Running> {
    let folder = tempfile::Builder::new().prefix("ksnap-load-").tempdir()?;
    let file = folder.path().join(name);
    std::fs::write(&file, text)?;
    let path = host::find(program).context("it was there a moment ago")?;
    let mut command = Command::new(path);
    command.args(options).arg(file).current_dir(folder.path());
    Ok(Running::One(Background::start(command)?, folder))
}

/// A PostgreSQL server in a folder of its own, without durability.
pub struct Server {
    process: Background,
    folder: TempDir,
}

impl Server {
    /// Where Debian puts the server's programs, or the folder of one in PATH.
    fn folder() -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten();
        versions
            .flatten()
            .map(|entry| entry.path().join("bin"))
            .filter(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
            .max()
    }

    /// A command as the user that the server runs as: it refuses to run as root.
    fn command(program: &Path, user: (u32, u32)) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                &user.0.to_string(),
                "--regid",
                &user.1.to_string(),
            ])
            .arg("--clear-groups")
            .arg(program);
        command
    }

    fn start() -> Result<Self> {
        let programs = Self::folder().context("PostgreSQL is not installed")?;
        let home = std::fs::metadata("/var/lib/postgresql").context("no user for PostgreSQL")?;
        let user = (home.uid(), home.gid());
        let folder = tempfile::Builder::new()
            .prefix("ksnap-postgres-")
            .tempdir()?;
        chown(folder.path(), Some(user.0), Some(user.1))?;
        let data = folder.path().join("data");
        let made = Self::command(&programs.join("initdb"), user)
            .args([
                "--auth",
                "trust",
                "--username",
                "postgres",
                "--no-sync",
                "--pgdata",
            ])
            .arg(&data)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            made.status.success(),
            "initdb: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        let mut command = Self::command(&programs.join("postgres"), user);
        command
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args(["-h", "", "-c", "fsync=off", "-c", "shared_buffers=64MB"])
            .current_dir(folder.path());
        let mut server = Self {
            process: Background::start(command)?,
            folder,
        };
        let end = Instant::now() + PATIENCE;
        while server.ask("select 1").is_err() {
            let ended = !server.process.running()?;
            if ended || Instant::now() > end {
                bail!("postgres does not answer: {}", server.process.stderr());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    fn client(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("-h")
            .arg(self.folder.path())
            .args(["-U", "postgres"]);
        command
    }

    fn ask(&self, query: &str) -> Result<String> {
        let output = self
            .client("psql")
            .args(["-Atc", query, "postgres"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its children end with it only if it is asked to end.
        let _ = self.process.signal(nix::sys::signal::Signal::SIGQUIT);
        let _ = self.process.wait(Duration::from_secs(10));
    }
}

fn postgres() -> Result<Running> {
    let server = Server::start()?;
    let filled = server
        .client("pgbench")
        .args(["-i", "-s", "3", "-q", "postgres"])
        .stdin(Stdio::null())
        .output()?;
    ensure!(
        filled.status.success(),
        "pgbench: {}",
        String::from_utf8_lossy(&filled.stderr)
    );
    let mut work = server.client("pgbench");
    work.args(["-c", "1", "-T", "600", "postgres"]);
    let load = Background::start(work)?;
    std::thread::sleep(WARM_UP);
    let query = "select pid from pg_stat_activity where application_name = 'pgbench' limit 1";
    let backend = server
        .ask(query)?
        .parse()
        .context("no process serves pgbench")?;
    Ok(Running::Postgres {
        _load: load,
        backend,
        _server: server,
    })
}

const PYTHON: &str = r#"
import json, random
random.seed(1)
records = {}
n = 0
while True:
    n += 1
    key = random.randrange(40000)
    records[key] = {"id": n, "name": "user%d" % key, "tags": [random.choice(["a", "bb", "ccc"]) for _ in range(3)],
                    "score": random.random()}
    if n % 1000 == 0:
        json.loads(json.dumps(list(records.values())[:500]))
"#;

const JAVA: &str = r#"
import java.util.*;
public class Load {
    public static void main(String[] arguments) {
        Random random = new Random(1);
        HashMap<Integer, String> names = new HashMap<>();
        ArrayList<long[]> rows = new ArrayList<>();
        for (long n = 0; ; n++) {
            int key = random.nextInt(60000);
            names.put(key, "value-" + key + "-" + n);
            if (n % 64 == 0) {
                rows.add(new long[]{n, key, random.nextLong()});
                if (rows.size() > 20000) rows.clear();
            }
            if (n % 100000 == 0) {
                StringBuilder text = new StringBuilder();
                for (String name : names.values()) text.append(name.hashCode()).append(',');
                if (text.length() == 1) System.out.println(text);
            }
        }
    }
}
"#;

const NODE: &str = r#"
const records = new Map();
let n = 0;
function step() {
    for (let i = 0; i < 2000; i++) {
        const key = Math.floor(Math.random() * 40000);
        records.set(key, { id: n++, name: 'item' + key, values: [key, n, key * 0.5], tag: { of: key } });
    }
    JSON.parse(JSON.stringify([...records.values()].slice(0, 200)));
    setImmediate(step);
}
step();
"#;
