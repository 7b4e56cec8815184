//! Why a server hangs up.
//!
//! With TLS 1.3 a client has shaken hands before the server has looked at its certificate. The
//! refusal is an alert that comes right before the end of the connection: a client that writes at
//! that moment gets a broken pipe, and the alert that says why stays unread in the socket.
//! [`Candid`] reads it then, and fails with the reason instead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at most in search of the reason; an alert has a few bytes.
const SEARCHED: usize = 16;

/// A stream whose writes fail for the reason that its reads know.
#[derive(Debug)]
pub(crate) struct Candid<S>(S);

impl<S> Candid<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self(stream)
    }
}

impl<S: AsyncRead + Unpin> Candid<S> {
    /// The reason that lies behind a failed write, else the failure itself. What is read on the
    /// way is lost, as is the connection.
    fn reason(&mut self, context: &mut Context<'_>, failed: io::Error) -> io::Error {
        let hung_up = [
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::ConnectionAborted,
        ];
        if !hung_up.contains(&failed.kind()) {
            return failed;
        }
        let mut space = [0; 4_096];
        for _ in 0..SEARCHED {
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut self.0).poll_read(context, &mut read) {
                Poll::Ready(Err(reason)) if reason.kind() == io::ErrorKind::InvalidData => {
                    return reason;
                }
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {}
                _ => break,
            }
        }
        failed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Candid<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, space)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Candid<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        written.map_err(|failed| self.reason(context, failed))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write_vectored(context, slices);
        written.map_err(|failed| self.reason(context, failed))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.0).poll_flush(context);
        flushed.map_err(|failed| self.reason(context, failed))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.0).poll_shutdown(context);
        shut.map_err(|failed| self.reason(context, failed))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A socket whose other end has hung up after these words.
    struct HungUp {
        unread: Vec<io::Result<&'static [u8]>>,
        failure: io::ErrorKind,
    }

    impl AsyncRead for HungUp {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            space: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            match self.unread.pop() {
                Some(Ok(bytes)) => space.put_slice(bytes),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for HungUp {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(self.failure.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.failure.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.failure.into()))
        }
    }

    fn alert() -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, "alert: no such certificate")
    }

    async fn said_by_a_write(socket: HungUp) -> String {
        let mut stream = Candid::new(socket);
        stream
            .write_all(b"a question")
            .await
            .unwrap_err()
            .to_string()
    }

    #[tokio::test]
    async fn a_write_that_fails_tells_the_alert_that_was_not_read_yet() {
        for failure in [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset] {
            let unread = vec![Err(alert()), Ok(b"settings".as_slice())];
            let said = said_by_a_write(HungUp { unread, failure }).await;
            assert!(said.contains("no such certificate"), "{said}");
        }
    }

    #[tokio::test]
    async fn a_write_that_fails_without_a_reason_fails_as_it_did() {
        let broken = io::ErrorKind::BrokenPipe;
        let unread = vec![Ok(b"settings".as_slice())];
        let said = said_by_a_write(HungUp {
            unread,
            failure: broken,
        })
        .await;
        assert_eq!(said, io::Error::from(broken).to_string());

        let other = io::ErrorKind::TimedOut;
        let unread = vec![Err(alert())];
        let said = said_by_a_write(HungUp {
            unread,
            failure: other,
        })
        .await;
        assert_eq!(said, io::Error::from(other).to_string());
    }
}
