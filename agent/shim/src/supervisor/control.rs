//! The socket: who is connected, what they said, what they are sent.
//!
//! Nothing here waits. A client that does not take what it is sent is dropped; the files have it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, unlinkat};
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recv, send, socket_with,
};

use crate::protocol::GREETING;

/// The socket's name in the shim's directory.
pub(super) const SOCKET: &str = "sock";
/// More clients than an agent, its successor and a few people need.
pub(super) const MAX_CLIENTS: usize = 16;
const MAX_REQUEST: usize = 128;

#[derive(Debug)]
pub(super) struct Control {
    listener: OwnedFd,
    clients: [Option<Box<Connection>>; MAX_CLIENTS],
}

#[derive(Debug)]
struct Connection {
    stream: OwnedFd,
    input: [u8; MAX_REQUEST],
    filled: usize,
    subscribed: bool,
}

impl Control {
    /// Binds the socket in the current directory. The caller holds the lock, so one that is
    /// there belongs to a shim that is gone.
    pub(super) fn bind() -> io::Result<Self> {
        match unlinkat(CWD, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Relative: a socket's address has room for 107 bytes, a data directory may need more.
        bind(&listener, &SocketAddrUnix::new(SOCKET)?)?;
        listen(&listener, 16)?;
        Ok(Self {
            listener,
            clients: [const { None }; MAX_CLIENTS],
        })
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub(super) fn stream(&self, client: usize) -> Option<BorrowedFd<'_>> {
        Some(self.clients.get(client)?.as_ref()?.stream.as_fd())
    }

    /// Takes in one who may talk to this shim; `None` when there was nobody, or nobody allowed.
    pub(super) fn accept(&mut self) -> Option<usize> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let stream = accept_with(&self.listener, flags).ok()?;
        let peer = socket_peercred(&stream).ok()?.uid;
        if !peer.is_root() && peer != rustix::process::geteuid() {
            return None;
        }
        let client = self.clients.iter().position(Option::is_none)?;
        let connection = Connection {
            stream,
            input: [0; MAX_REQUEST],
            filled: 0,
            subscribed: false,
        };
        self.clients[client] = Some(Box::new(connection));
        self.send(client, &format!("{GREETING}\n"));
        Some(client)
    }

    /// Takes what a client sent; drops one that is gone or talks without end.
    pub(super) fn receive(&mut self, client: usize) {
        let Some(connection) = self.clients.get_mut(client).and_then(Option::as_deref_mut) else {
            return;
        };
        let free = &mut connection.input[connection.filled..];
        match recv(&connection.stream, free, rustix::net::RecvFlags::DONTWAIT) {
            Ok((0, _)) => self.clients[client] = None,
            Ok((n, _)) => connection.filled += n,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.clients[client] = None,
        }
    }

    /// The next whole line a client sent, without its newline.
    pub(super) fn next_line(&mut self, client: usize) -> Option<Vec<u8>> {
        let connection = self.clients.get_mut(client)?.as_deref_mut()?;
        let filled = &connection.input[..connection.filled];
        let Some(end) = filled.iter().position(|byte| *byte == b'\n') else {
            if connection.filled == MAX_REQUEST {
                self.clients[client] = None;
            }
            return None;
        };
        let line = filled[..end].to_vec();
        connection.input.copy_within(end + 1..connection.filled, 0);
        connection.filled -= end + 1;
        Some(line)
    }

    pub(super) fn subscribe(&mut self, client: usize) {
        if let Some(Some(connection)) = self.clients.get_mut(client) {
            connection.subscribed = true;
        }
    }

    /// Sends to one client, or drops it.
    pub(super) fn send(&mut self, client: usize, line: &str) {
        let Some(Some(connection)) = self.clients.get(client) else {
            return;
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if send(&connection.stream, line.as_bytes(), flags) != Ok(line.len()) {
            self.clients[client] = None;
        }
    }

    /// Sends to every subscriber.
    pub(super) fn broadcast(&mut self, line: &str) {
        for client in 0..MAX_CLIENTS {
            if self.clients[client]
                .as_ref()
                .is_some_and(|connection| connection.subscribed)
            {
                self.send(client, line);
            }
        }
    }
}
