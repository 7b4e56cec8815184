//! The rest of a request that was answered before all of it had come.
//!
//! Whoever still writes to a closed connection gets an error instead of the answer: a client that
//! uploads to a full disk would hear of a broken pipe and not of the disk. So what an answer left
//! unread is read and thrown away, for a time, until the client has seen the answer and goes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, SizeHint};

/// How long a client may go on sending what nobody wants any more.
const LINGER: Duration = Duration::from_secs(30);

/// Has the rest of a request's body read once nobody else does.
pub(super) async fn to_the_end(request: Request<Body>) -> Request<Body> {
    if request.body().is_end_stream() {
        return request;
    }
    // It is sent once somebody begins to read.
    let announced = request.headers().contains_key(header::EXPECT);
    request.map(|body| {
        Body::new(Lingering {
            body: Some(body),
            coming: !announced,
        })
    })
}

/// A body that is read on when it is let go of before its end.
struct Lingering {
    /// None at its end.
    body: Option<Body>,
    /// Whether the client sends it, and does not wait to be told to.
    coming: bool,
}

impl hyper::body::Body for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.coming = true;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let nothing = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(nothing, Body::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else {
            return;
        };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.coming && !body.is_end_stream() {
            runtime.spawn(tokio::time::timeout(LINGER, async move {
                while let Some(Ok(_)) = body.frame().await {}
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio::sync::mpsc;

    use super::*;

    /// A request of which the pieces come one by one.
    async fn request(headers: &[(&'static str, &str)]) -> (mpsc::Sender<Bytes>, Request<Body>) {
        let (sender, mut pieces) = mpsc::channel::<Bytes>(1);
        let pieces = futures::stream::poll_fn(move |context| pieces.poll_recv(context));
        let mut request = Request::put("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Body::from_stream(pieces.map(Ok::<_, std::io::Error>));
        (sender, to_the_end(request.body(body).unwrap()).await)
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_answer_left_unread_is_read_on_for_a_time() {
        let (sender, request) = request(&[]).await;
        let began = tokio::time::Instant::now();
        let mut body = request.into_body();
        sender.send("first".into()).await.unwrap();
        assert!(body.frame().await.unwrap().is_ok());
        drop(body);
        for _ in 0..1_000 {
            sender.send("more".into()).await.unwrap();
        }
        // A client that neither goes on nor goes holds nothing for ever.
        sender.closed().await;
        assert_eq!(began.elapsed(), LINGER);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_whole_is_let_go_of_at_once() {
        let (sender, request) = request(&[]).await;
        let began = tokio::time::Instant::now();
        let reading = tokio::spawn(request.into_body().collect());
        sender.send("all".into()).await.unwrap();
        drop(sender);
        let read = reading.await.unwrap().unwrap().to_bytes();
        assert_eq!((&*read, began.elapsed()), (&b"all"[..], Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_to_be_told_is_not_told_to_send_what_is_not_wanted() {
        let (sender, request) = request(&[("expect", "100-continue")]).await;
        let began = tokio::time::Instant::now();
        drop(request);
        sender.closed().await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
