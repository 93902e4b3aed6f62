//! A small client for redis's protocol (RESP2).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Simple(String),
    /// `:42`
    Integer(i64),
    /// A string of bytes.
    Bulk(Vec<u8>),
    /// No such value.
    Nil,
    /// A list.
    Array(Vec<Reply>),
}

/// An open connection, which a test can keep across a rollback.
pub struct Resp(BufReader<TcpStream>);

impl Resp {
    /// Connects to a port of 127.0.0.1. A reply may take a minute.
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .with_context(|| format!("connect to redis at {port}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command and waits for its reply; redis's own errors are errors.
    pub fn command(&mut self, words: &[&str]) -> Result<Reply> {
        self.send(words)?;
        self.receive().with_context(|| words.join(" "))
    }

    /// Sends a command without waiting.
    pub fn send(&mut self, words: &[&str]) -> Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        self.0
            .get_mut()
            .write_all(request.as_bytes())
            .context("send to redis")
    }

    /// Waits for the next reply.
    pub fn receive(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("receive from redis")?;
        let line = line
            .strip_suffix("\r\n")
            .context("redis closed the connection")?;
        let (kind, rest) = line.split_at_checked(1).context("an empty reply")?;
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => bail!("redis: {rest}"),
            ":" => Reply::Integer(rest.parse()?),
            "$" => match rest.parse::<i64>()? {
                -1 => Reply::Nil,
                length => {
                    let mut bytes = vec![0; usize::try_from(length)? + 2];
                    self.0
                        .read_exact(&mut bytes)
                        .context("receive from redis")?;
                    bytes.truncate(bytes.len() - 2);
                    Reply::Bulk(bytes)
                }
            },
            "*" => match rest.parse::<i64>()? {
                -1 => Reply::Nil,
                length => Reply::Array((0..length).map(|_| self.receive()).collect::<Result<_>>()?),
            },
            _ => bail!("not a reply: {line:?}"),
        })
    }

    /// `SET key value`.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match self.command(&["SET", key, value])? {
            Reply::Simple(ok) if ok == "OK" => Ok(()),
            other => bail!("SET {key}: {other:?}"),
        }
    }

    /// `GET key`.
    pub fn get(&mut self, key: &str) -> Result<Option<String>> {
        match self.command(&["GET", key])? {
            Reply::Nil => Ok(None),
            Reply::Bulk(bytes) => Ok(Some(String::from_utf8(bytes)?)),
            other => bail!("GET {key}: {other:?}"),
        }
    }

    /// `INCR key`.
    pub fn incr(&mut self, key: &str) -> Result<i64> {
        self.integer(&["INCR", key])
    }

    /// A command that answers with a number: `DBSIZE`, `INCR`, `STRLEN`, …
    pub fn integer(&mut self, words: &[&str]) -> Result<i64> {
        match self.command(words)? {
            Reply::Integer(number) => Ok(number),
            other => bail!("{}: {other:?}", words.join(" ")),
        }
    }

    /// `DEBUG DIGEST`: one hash over everything in the server.
    pub fn digest(&mut self) -> Result<String> {
        match self.command(&["DEBUG", "DIGEST"])? {
            Reply::Simple(digest) => Ok(digest),
            other => bail!("DEBUG DIGEST: {other:?}"),
        }
    }
}
