//! What goes to and fro while a command runs beside a pod: frames, in each direction one stream.
//!
//! A frame is a byte that says what it is, the length of the rest in four bytes, and the rest. The
//! same frames go from the client to the server and on to the node: a server copies them.

use std::io;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tokio_util::codec::{Decoder, Encoder};

/// The most that a frame holds.
pub(crate) const MOST: usize = 64 * 1024;
/// The bytes before what it holds.
const HEAD: usize = 5;

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERRORS: u8 = 2;
const ENDED: u8 = 3;
const SIZE: u8 = 4;

/// How many columns and rows a terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ended {
    /// Its exit code; of what a signal ended, 128 and the signal's number.
    pub(crate) code: u8,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// For the command's standard input; nothing: there is no more.
    Input(Bytes),
    /// From its standard output.
    Output(Bytes),
    /// From its standard error.
    Errors(Bytes),
    /// The last one.
    Ended(Ended),
    /// The asker's terminal has another size.
    Size(Size),
}

impl Frame {
    /// As it is sent.
    pub(crate) fn encode(self) -> Bytes {
        let (kind, held) = match self {
            Self::Input(bytes) => (INPUT, bytes),
            Self::Output(bytes) => (OUTPUT, bytes),
            Self::Errors(bytes) => (ERRORS, bytes),
            Self::Ended(ended) => (
                ENDED,
                serde_json::to_vec(&ended).expect("numbers are JSON").into(),
            ),
            Self::Size(Size { columns, rows }) => {
                let mut held = BytesMut::with_capacity(4);
                held.put_u16(columns);
                held.put_u16(rows);
                (SIZE, held.freeze())
            }
        };
        let length = u32::try_from(held.len()).expect("nobody makes one of more than 4 GiB");
        let mut whole = BytesMut::with_capacity(HEAD + held.len());
        whole.put_u8(kind);
        whole.put_u32(length);
        whole.extend_from_slice(&held);
        whole.freeze()
    }

    fn decode(kind: u8, mut held: Bytes) -> io::Result<Self> {
        let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        Ok(match kind {
            INPUT => Self::Input(held),
            OUTPUT => Self::Output(held),
            ERRORS => Self::Errors(held),
            ENDED => Self::Ended(
                serde_json::from_slice(&held).map_err(|_| wrong("how it ended is not told"))?,
            ),
            SIZE if held.len() == 4 => Self::Size(Size {
                columns: held.get_u16(),
                rows: held.get_u16(),
            }),
            _ => return Err(wrong("a frame of no kind that is known")),
        })
    }
}

/// Reads and writes frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frames;

impl Decoder for Frames {
    type Item = Frame;
    type Error = io::Error;

    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
        let Some((head, _)) = buffer.split_at_checked(HEAD) else {
            return Ok(None);
        };
        let (kind, mut length) = (head[0], &head[1..]);
        let length = usize::try_from(length.get_u32()).unwrap_or(usize::MAX);
        if length > MOST {
            let why = format!("a frame of {length} bytes: {MOST} at most");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if buffer.len() < HEAD + length {
            return Ok(None);
        }
        buffer.advance(HEAD);
        Frame::decode(kind, buffer.split_to(length).freeze()).map(Some)
    }
}

impl Encoder<Frame> for Frames {
    type Error = io::Error;

    fn encode(&mut self, frame: Frame, buffer: &mut BytesMut) -> io::Result<()> {
        buffer.extend_from_slice(&frame.encode());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Input(Bytes::from_static(b"in")),
            Frame::Input(Bytes::new()),
            Frame::Output(Bytes::from(vec![7; MOST])),
            Frame::Errors(Bytes::from_static(b"\0\xff")),
            Frame::Size(Size {
                columns: 300,
                rows: 2,
            }),
            Frame::Ended(Ended { code: 137 }),
        ]
    }

    #[test]
    fn frames_are_read_as_they_were_sent_however_they_are_cut() {
        let sent: Vec<u8> = all().into_iter().flat_map(Frame::encode).collect();
        for piece in [1, 3, 5, 4_096, sent.len()] {
            let (mut buffer, mut read) = (BytesMut::new(), Vec::new());
            for piece in sent.chunks(piece) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frames.decode(&mut buffer).unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, all(), "in pieces of {piece}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_it_is_waited_for() {
        let refused = |bytes: &[u8]| Frames.decode(&mut BytesMut::from(bytes)).unwrap_err();
        refused(&[INPUT, 0xff, 0xff, 0xff, 0xff]);
        refused(&[INPUT, 0, 1, 0, 1]);
        refused(&[9, 0, 0, 0, 0]);
        refused(&[SIZE, 0, 0, 0, 1, 0]);
        refused(&[ENDED, 0, 0, 0, 2, b'{', b'}']);
        for short in [&[][..], &[INPUT, 0], &[INPUT, 0, 0, 0, 2, 1]] {
            assert_eq!(Frames.decode(&mut BytesMut::from(short)).unwrap(), None);
        }
    }
}
