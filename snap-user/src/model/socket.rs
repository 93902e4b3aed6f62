//! Sockets.

use super::connection::Connection;
use serde::{Deserialize, Serialize};

/// A socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// `AF_*`
    pub domain: i32,
    /// `SOCK_*`
    pub ty: i32,
    /// Protocol number.
    pub protocol: i32,
    /// How far it has come.
    pub state: SocketState,
    /// The kernel's `struct sockaddr` of its own address; empty without one.
    pub local: Vec<u8>,
    /// That of the other side; empty without one.
    pub peer: Vec<u8>,
    /// Inode of the socket that a Unix socket is connected with.
    pub peer_inode: Option<u64>,
    /// Options that can be set again.
    pub options: Vec<SocketOption>,
    /// What it has received and the program has not read yet, oldest first.
    pub queue: Vec<Message>,
    /// Bytes or messages of the queue that were not recorded.
    pub unread: u32,
    /// Descriptors that lie in its queue and were not recorded.
    pub passed_descriptors: u32,
    /// Directions shut down: 1 for receiving, 2 for sending.
    pub shutdown: u8,
    /// Of a TCP socket whose process was ended for it: its connection. Stored behind the state, since it came to be there
    /// later than all else.
    #[serde(skip)]
    pub connection: Option<Box<Connection>>,
}

/// How far a socket has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketState {
    /// Neither listening nor connected; bound if it has an address of its own.
    #[default]
    Idle,
    /// Listening, with the backlog given to `listen(2)`.
    Listening(u32),
    /// Connected with another one.
    Connected,
    /// It was connected, or is about to be.
    Other,
}

/// An option of a socket (`setsockopt(2)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// `SOL_*`, `IPPROTO_*`
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// Its value.
    pub value: Vec<u8>,
}

/// A message in a socket's queue; of a stream, all of its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its bytes.
    pub data: Vec<u8>,
    /// The kernel's `struct sockaddr` of its sender; empty where it has none.
    pub from: Vec<u8>,
}
