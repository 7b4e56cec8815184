//! A client of the server: what the loop by hand and the store that the framework reads share.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use platctrl_bench::Result;
use tokio::net::TcpStream;

/// Where the objects are.
const PATH: &str = "/apis/bench.dev/v1/widgets";

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
}

impl Connection {
    pub(crate) async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn send(&mut self, query: &str) -> Result<Incoming> {
        let request = hyper::Request::get(format!("{PATH}?{query}"))
            .header("host", "127.0.0.1")
            .body(Empty::new())?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?.into_body())
    }

    /// One page of a list, after the object of this name.
    pub(crate) async fn page(&mut self, limit: usize, after: Option<&str>) -> Result<Bytes> {
        let after = after.unwrap_or_default();
        let body = self
            .send(&format!("limit={limit}&continue={after}"))
            .await?;
        Ok(body.collect().await?.to_bytes())
    }

    /// Begins a watch.
    pub(crate) async fn watch(mut self, version: u64) -> Result<Lines> {
        let query = format!("watch=true&resourceVersion={version}&allowWatchBookmarks=true");
        Ok(Lines {
            body: self.send(&query).await?,
            buffer: BytesMut::new(),
            _connection: self,
        })
    }
}

/// The lines of a watch.
pub(crate) struct Lines {
    body: Incoming,
    buffer: BytesMut,
    _connection: Connection,
}

impl Lines {
    /// Whole lines, as many as have come; None at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            self.buffer.extend_from_slice(&data);
            if let Some(end) = self.buffer.iter().rposition(|&byte| byte == b'\n') {
                return Ok(Some(self.buffer.split_to(end + 1).freeze()));
            }
        }
    }
}
