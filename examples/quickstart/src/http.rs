//! As much of HTTP/1.1 as a server of short texts needs: request heads, keep-alive, plain answers.
//!
//! A peer is given limits and not trust: a head of at most 8 KiB, five seconds for each read and
//! ten for a whole head. A request with a body gets its answer and the connection is closed, so
//! that no byte of a body is ever taken for the next request.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

const MAX_HEAD: usize = 8 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The method of a request, as far as this server tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Other,
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The path without the query.
    pub(crate) path: String,
    keep_alive: bool,
}

/// An answer of plain text.
#[derive(Clone, Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    body: String,
}

impl Response {
    pub(crate) fn text(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            body: body.into(),
        }
    }

    fn write(&self, to: &mut impl Write, head_only: bool, keep_alive: bool) -> io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = if self.status == 405 {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let body = if head_only { "" } else { &self.body };
        // One write, so that a short answer is one packet.
        let text = format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: {connection}\r\n{allow}\r\n{body}",
            self.status,
            self.body.len(),
        );
        to.write_all(text.as_bytes())
    }
}

/// Answers the requests of one connection until either side closes it.
pub(crate) fn serve(
    mut stream: TcpStream,
    mut answer: impl FnMut(&Request) -> Response,
) -> io::Result<()> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    stream.set_write_timeout(Some(READ_TIMEOUT))?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::new();
    loop {
        let request = match read_head(&mut stream, &mut buffer)? {
            Head::Closed => return Ok(()),
            Head::Refused(status) => {
                refuse(
                    stream,
                    &Response::text(status, "this request is not understood\n"),
                );
                return Ok(());
            }
            Head::Complete(request) => request,
        };
        let response = answer(&request);
        response.write(
            &mut stream,
            request.method == Method::Head,
            request.keep_alive,
        )?;
        if !request.keep_alive {
            stream.shutdown(Shutdown::Write)?;
            return Ok(());
        }
    }
}

/// Sends one answer and closes the connection; a peer that does not take it is left alone.
pub(crate) fn refuse(mut stream: TcpStream, response: &Response) {
    let _ = stream.set_write_timeout(Some(READ_TIMEOUT));
    let _ = response.write(&mut stream, false, false);
    let _ = stream.shutdown(Shutdown::Write);
}

#[derive(Debug, PartialEq, Eq)]
enum Head {
    /// The peer closed, or idled, between requests.
    Closed,
    Refused(u16),
    Complete(Request),
}

/// Reads one request head; `buffer` holds what came after the one before.
fn read_head(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<Head> {
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let mut chunk = [0; 2048];
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let request = parse(&buffer[..end]);
            buffer.drain(..end + 4);
            return Ok(request.map_or(Head::Refused(400), Head::Complete));
        }
        if buffer.len() > MAX_HEAD {
            return Ok(Head::Refused(431));
        }
        if Instant::now() > deadline {
            return Ok(Head::Refused(408));
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(Head::Closed),
            Ok(count) => buffer.extend_from_slice(&chunk[..count]),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if buffer.is_empty() => {
                    return Ok(Head::Closed);
                }
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    return Ok(Head::Refused(408));
                }
                _ => return Err(error),
            },
        }
    }
}

/// The request of a head without its closing empty line; `None` when it is malformed.
fn parse(head: &[u8]) -> Option<Request> {
    let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !target.starts_with('/') {
        return None;
    }
    let (mut keep_alive, mut needs_host) = match version {
        "HTTP/1.1" => (true, true),
        "HTTP/1.0" => (false, false),
        _ => return None,
    };
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.is_empty() || name.contains([' ', '\t']) {
            return None;
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => needs_host = false,
            "connection" if value.eq_ignore_ascii_case("close") => keep_alive = false,
            "transfer-encoding" => keep_alive = false,
            "content-length" if value != "0" => keep_alive = false,
            _ => {}
        }
    }
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "" => return None,
        _ => Method::Other,
    };
    let path = target.split(['?', '#']).next()?.to_owned();
    (!needs_host).then_some(Request {
        method,
        path,
        keep_alive,
    })
}

#[cfg(test)]
mod tests {
    use super::{Head, MAX_HEAD, Method, Request, parse, read_head};

    #[test]
    fn a_request_head_is_read_with_its_path_without_the_query() {
        let request = parse(b"GET /a/b?c=d HTTP/1.1\r\nHost: x").expect("well formed");
        assert_eq!(
            request,
            Request {
                method: Method::Get,
                path: "/a/b".into(),
                keep_alive: true
            }
        );
    }

    #[test]
    fn a_malformed_head_is_refused() {
        for head in [
            &b""[..],
            b"GET",
            b"GET /",
            b"GET / HTTP/1.1",             // without Host
            b"GET  / HTTP/1.1\r\nHost: x", // two spaces
            b"GET / HTTP/2\r\nHost: x",
            b"GET example HTTP/1.1\r\nHost: x",
            b"GET / HTTP/1.1\r\nHost : x", // space before the colon
            b"GET / HTTP/1.1\r\nHost: x\r\n folded: y",
            b"GET /\xff HTTP/1.1\r\nHost: x",
        ] {
            assert_eq!(parse(head), None, "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_request_with_a_body_is_the_last_of_its_connection() {
        for header in [
            "Content-Length: 3",
            "Transfer-Encoding: chunked",
            "Connection: close",
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{header}");
            assert!(
                !parse(head.as_bytes()).expect("well formed").keep_alive,
                "{header}"
            );
        }
    }

    #[test]
    fn requests_sent_at_once_are_answered_one_by_one() {
        let mut input =
            &b"GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n"[..];
        let mut buffer = Vec::new();
        for path in ["/1", "/2"] {
            let Head::Complete(request) = read_head(&mut input, &mut buffer).expect("in memory")
            else {
                panic!("no request {path}");
            };
            assert_eq!(request.path, path);
        }
        assert_eq!(
            read_head(&mut input, &mut buffer).expect("in memory"),
            Head::Closed
        );
    }

    #[test]
    fn an_endless_head_is_refused() {
        let input = vec![b'a'; 4 * MAX_HEAD];
        let head = read_head(&mut &input[..], &mut Vec::new()).expect("in memory");
        assert_eq!(head, Head::Refused(431));
    }
}
