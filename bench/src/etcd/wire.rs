//! etcd's protocol with nothing around it: no deadlines, no other members, no checks.

use std::convert::Infallible;
use std::time::Instant;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::{Message, Oneof};

use crate::Result;

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Oneof)]
enum Request {
    #[prost(message, tag = "2")]
    Put(Put),
}

#[derive(Clone, PartialEq, Message)]
struct Operation {
    #[prost(oneof = "Request", tags = "2")]
    request: Option<Request>,
}

#[derive(Clone, PartialEq, Message)]
struct Txn {
    #[prost(message, repeated, tag = "2")]
    success: Vec<Operation>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnAnswer {
    #[prost(bool, tag = "2")]
    succeeded: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Range {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(int64, tag = "3")]
    limit: i64,
    #[prost(int64, tag = "4")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Header {
    #[prost(int64, tag = "3")]
    revision: i64,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "5")]
    value: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct RangeAnswer {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
    #[prost(bool, tag = "3")]
    more: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Create {
    #[prost(bytes = "bytes", tag = "1")]
    key: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    range_end: Bytes,
    #[prost(int64, tag = "3")]
    start_revision: i64,
}

#[derive(Clone, PartialEq, Oneof)]
enum Ask {
    #[prost(message, tag = "1")]
    Create(Create),
}

#[derive(Clone, PartialEq, Message)]
struct Watch {
    #[prost(oneof = "Ask", tags = "1")]
    ask: Option<Ask>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "2")]
    kv: Option<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchAnswer {
    #[prost(message, repeated, tag = "11")]
    events: Vec<Event>,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A connection.
#[derive(Clone, Debug)]
pub struct Bare {
    sender: SendRequest<Body>,
    endpoint: String,
    root: String,
}

fn frame(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("the buffer grows");
    bytes.freeze()
}

/// The next message of an answer.
async fn next<M: Message + Default>(body: &mut Incoming, buffer: &mut BytesMut) -> Result<M> {
    loop {
        if buffer.len() >= 5 {
            let length = u32::from_be_bytes([buffer[1], buffer[2], buffer[3], buffer[4]]) as usize;
            if buffer.len() >= 5 + length {
                buffer.advance(5);
                return Ok(M::decode(buffer.split_to(length).freeze())?);
            }
        }
        let frame = body.frame().await.ok_or("an answer without a message")??;
        if let Ok(data) = frame.into_data() {
            buffer.put(data);
        }
    }
}

impl Bare {
    /// Connects to a server; keys are below `root`.
    ///
    /// # Errors
    /// The server cannot be reached; so of all functions here, which also fail with it.
    pub async fn connect(endpoint: &str, root: &str) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(endpoint).await?;
        stream.set_nodelay(true)?;
        let (sender, driver) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(driver);
        Ok(Self {
            sender,
            endpoint: endpoint.to_owned(),
            root: root.to_owned(),
        })
    }

    fn below(&self, text: &str) -> Bytes {
        Bytes::from(format!("{}/{text}", self.root))
    }

    async fn send(&self, method: &str, body: Body) -> Result<Incoming> {
        let request = http::Request::post(format!("http://{}{method}", self.endpoint))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(body)?;
        Ok(self.sender.clone().send_request(request).await?.into_body())
    }

    async fn ask<M: Message + Default>(&self, method: &str, message: &impl Message) -> Result<M> {
        let mut body = self
            .send(method, Full::new(frame(message)).boxed_unsync())
            .await?;
        next(&mut body, &mut BytesMut::new()).await
    }

    /// Puts keys in one transaction.
    ///
    /// # Errors
    /// See [`Bare::connect`].
    pub async fn put(&self, puts: &[(String, String)]) -> Result<()> {
        let success = puts.iter().map(|(key, value)| Operation {
            request: Some(Request::Put(Put {
                key: self.below(key),
                value: Bytes::from(value.clone()),
            })),
        });
        let txn = Txn {
            success: success.collect(),
        };
        let answer: TxnAnswer = self.ask("/etcdserverpb.KV/Txn", &txn).await?;
        if answer.succeeded {
            Ok(())
        } else {
            Err("a transaction failed".into())
        }
    }

    /// Lists a prefix in pages at one revision; returns how many keys and bytes.
    ///
    /// # Errors
    /// See [`Bare::connect`].
    pub async fn list(&self, prefix: &str, page: usize) -> Result<(usize, usize)> {
        let mut end = self.below(prefix).to_vec();
        *end.last_mut().ok_or("no prefix")? += 1;
        let mut range = Range {
            key: self.below(prefix),
            range_end: end.into(),
            limit: page as i64,
            revision: 0,
        };
        let (mut keys, mut bytes) = (0, 0);
        loop {
            let answer: RangeAnswer = self.ask("/etcdserverpb.KV/Range", &range).await?;
            if range.revision == 0 {
                range.revision = answer.header.ok_or("no header")?.revision;
            }
            keys += answer.kvs.len();
            bytes += answer.kvs.iter().map(|kv| kv.value.len()).sum::<usize>();
            let Some(last) = answer.kvs.last().filter(|_| answer.more) else {
                return Ok((keys, bytes));
            };
            let mut after = last.key.to_vec();
            after.push(0);
            range.key = after.into();
        }
    }

    /// Watches everything from a revision, until so many events have come; returns when.
    ///
    /// # Errors
    /// See [`Bare::connect`].
    pub async fn watch_events(&self, start: i64, count: usize) -> Result<Vec<Instant>> {
        let mut end = self.below("").to_vec();
        *end.last_mut().ok_or("no root")? += 1;
        let create = Create {
            key: self.below(""),
            range_end: end.into(),
            start_revision: start,
        };
        let question = frame(&Watch {
            ask: Some(Ask::Create(create)),
        });
        let asked = futures::stream::once(async move { Ok(Frame::data(question)) });
        // It stays open for as long as it is read.
        let questions = asked.chain(futures::stream::pending());
        let questions = StreamBody::new(questions).boxed_unsync();
        let mut body = self.send("/etcdserverpb.Watch/Watch", questions).await?;
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        while seen.len() < count {
            let answer: WatchAnswer = next(&mut body, &mut buffer).await?;
            seen.extend(answer.events.iter().map(|_| Instant::now()));
        }
        Ok(seen)
    }
}
