//! An established TCP connection, by what it takes to go on with it (`TCP_REPAIR`).

use serde::{Deserialize, Serialize};

/// One side of a TCP connection, at a moment from which on it is silent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// Sequence number of the first byte that the other side has not acknowledged.
    pub send_seq: u32,
    /// What the program has sent from there on.
    pub send: Vec<u8>,
    /// Sequence number of the first byte that the program has not read.
    pub receive_seq: u32,
    /// What has been received from there on, and acknowledged.
    pub receive: Vec<u8>,
    /// The program has said that it sends no more (`shutdown(2)`).
    pub is_ending: bool,
    /// Longest segment that the other side takes, in bytes.
    pub mss: u32,
    /// By how many bits the windows of the other side and of this one are scaled (RFC 7323), if they are.
    pub scales: Option<(u8, u8)>,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Where the clock of the time stamps was (RFC 7323), if there are any; the lowest bit says that it counts
    /// microseconds rather than milliseconds.
    pub timestamp: Option<u32>,
    /// `snd_wl1`, `snd_wnd`, `max_window`, `rcv_wnd`, `rcv_wup` of `struct tcp_repair_window`.
    pub window: [u32; 5],
    /// Room for what is sent and received (`SO_SNDBUF`, `SO_RCVBUF`), in bytes.
    pub room: (u32, u32),
    /// When this was, in nanoseconds since 1970.
    pub time_ns: u64,
}
