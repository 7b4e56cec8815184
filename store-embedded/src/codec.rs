//! How records, history and the store's own state are written in the engine.
//!
//! Everything begins with a CRC-32 of what follows (and of the key, for records), because the
//! engine checks its own checksums only when it repairs. Numbers are little-endian. A change here
//! is a new [`FORMAT`].

use bytes::Bytes;
use platctrl_framework::store::{Key, LeaseId, Prefix, Record, Revision};

use crate::error::EngineError;

/// The newest format that this version writes and understands.
pub(crate) const FORMAT: u32 = 1;

type Result<T> = std::result::Result<T, EngineError>;

const RECORD_HEADER: usize = 28;

/// A record as it lies in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored<'a> {
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    pub(crate) lease: Option<LeaseId>,
    pub(crate) value: &'a [u8],
}

impl<'a> Stored<'a> {
    pub(crate) fn encode_into(&self, key: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.reserve(RECORD_HEADER + self.value.len());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.created.as_u64().to_le_bytes());
        out.extend_from_slice(&self.modified.as_u64().to_le_bytes());
        out.extend_from_slice(&lease_number(self.lease).to_le_bytes());
        out.extend_from_slice(self.value);
        let sum = checksum(key, &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
    }

    pub(crate) fn decode(key: &[u8], bytes: &'a [u8]) -> Result<Self> {
        let mut reader = checked(key, bytes, || {
            format!("the record of {}", String::from_utf8_lossy(key))
        })?;
        Ok(Self {
            created: reader.revision()?,
            modified: reader.revision()?,
            lease: reader.lease()?,
            value: reader.rest,
        })
    }

    pub(crate) fn to_record(self, key: &[u8]) -> Result<Record> {
        Ok(Record {
            key: to_key(key)?,
            value: Bytes::copy_from_slice(self.value),
            created: self.created,
            modified: self.modified,
            lease: self.lease,
        })
    }
}

pub(crate) fn to_key(bytes: &[u8]) -> Result<Key> {
    let text = std::str::from_utf8(bytes).map_err(|_| EngineError::damaged("a key is no text"))?;
    Key::new(text).map_err(|error| EngineError::damaged(error.to_string()))
}

/// A stored key is in the range of a prefix.
pub(crate) fn is_in(prefix: &Prefix, key: &[u8]) -> bool {
    std::str::from_utf8(key).is_ok_and(|key| prefix.covers(key))
}

/// What the writer knows about the whole store; written with every batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    /// The oldest revision that can be read and watched from.
    pub(crate) oldest: Revision,
    /// Bytes of all segments of the history.
    pub(crate) history_bytes: u64,
    /// How often the store was opened; part of every lease id, so that none comes twice.
    pub(crate) opens: u64,
}

impl State {
    pub(crate) fn encode(&self) -> [u8; 36] {
        let mut out = [0; 36];
        out[4..12].copy_from_slice(&self.revision.as_u64().to_le_bytes());
        out[12..20].copy_from_slice(&self.oldest.as_u64().to_le_bytes());
        out[20..28].copy_from_slice(&self.history_bytes.to_le_bytes());
        out[28..36].copy_from_slice(&self.opens.to_le_bytes());
        let sum = checksum(b"state", &out[4..]);
        out[..4].copy_from_slice(&sum.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = checked(b"state", bytes, || "the store's state".to_owned())?;
        let state = Self {
            revision: reader.revision()?,
            oldest: reader.revision()?,
            history_bytes: reader.u64()?,
            opens: reader.u64()?,
        };
        if state.oldest > state.revision {
            return Err(EngineError::damaged("the history begins behind its end"));
        }
        Ok(state)
    }
}

/// One change of one key in the history: what it became (the new value is not here: it is the
/// record itself, or the `before` of the key's next event) and what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) key: &'a [u8],
    /// None: the key was deleted.
    pub(crate) put: Option<Put>,
    pub(crate) before: Option<Stored<'a>>,
}

/// What a put gave the key besides its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) created: Revision,
    pub(crate) lease: Option<LeaseId>,
}

const SEGMENT_HEADER: usize = 12;
const IS_PUT: u8 = 1;
const HAS_BEFORE: u8 = 2;

/// Some neighbouring revisions of the history, written as one row under the first of them.
#[derive(Debug)]
pub(crate) struct SegmentBuilder {
    bytes: Vec<u8>,
    first: Option<Revision>,
    count_at: usize,
}

impl SegmentBuilder {
    /// Rows of about this size fill the engine's pages best.
    const FULL: usize = 3_000;

    /// `time`: the wall time in milliseconds, by which history ages.
    pub(crate) fn new(time: i64) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&time.to_le_bytes());
        Self {
            bytes,
            first: None,
            count_at: 0,
        }
    }

    pub(crate) fn begin(&mut self, revision: Revision) {
        self.first.get_or_insert(revision);
        self.bytes
            .extend_from_slice(&revision.as_u64().to_le_bytes());
        self.count_at = self.bytes.len();
        self.bytes.extend_from_slice(&0u32.to_le_bytes());
    }

    /// Adds an event to the revision that was begun last.
    pub(crate) fn push(&mut self, event: &Event<'_>) {
        let out = &mut self.bytes;
        let put = if event.put.is_some() { IS_PUT } else { 0 };
        let before = if event.before.is_some() {
            HAS_BEFORE
        } else {
            0
        };
        out.push(put | before);
        out.extend_from_slice(&(event.key.len() as u16).to_le_bytes());
        out.extend_from_slice(event.key);
        if let Some(put) = event.put {
            out.extend_from_slice(&put.created.as_u64().to_le_bytes());
            out.extend_from_slice(&lease_number(put.lease).to_le_bytes());
        }
        if let Some(before) = event.before {
            out.extend_from_slice(&before.created.as_u64().to_le_bytes());
            out.extend_from_slice(&before.modified.as_u64().to_le_bytes());
            out.extend_from_slice(&lease_number(before.lease).to_le_bytes());
            out.extend_from_slice(&(before.value.len() as u32).to_le_bytes());
            out.extend_from_slice(before.value);
        }
        let at = self.count_at;
        let mut count = [0; 4];
        count.copy_from_slice(&out[at..at + 4]);
        let count = u32::from_le_bytes(count) + 1;
        out[at..at + 4].copy_from_slice(&count.to_le_bytes());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= Self::FULL
    }

    /// The row's key and value; None when nothing was added.
    pub(crate) fn finish(mut self) -> Option<(u64, Vec<u8>)> {
        let first = self.first?.as_u64();
        let sum = checksum(&first.to_le_bytes(), &self.bytes[4..]);
        self.bytes[..4].copy_from_slice(&sum.to_le_bytes());
        Some((first, self.bytes))
    }
}

/// A row of the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    entries: &'a [u8],
}

impl<'a> Segment<'a> {
    pub(crate) fn decode(first: u64, bytes: &'a [u8]) -> Result<Self> {
        let mut reader = checked(&first.to_le_bytes(), bytes, || {
            format!("the history from revision {first}")
        })?;
        // The time is read by those who trim.
        reader.u64()?;
        Ok(Self {
            entries: reader.rest,
        })
    }

    /// Calls `visit` with every event, oldest revision first, until it returns false.
    pub(crate) fn for_each(
        &self,
        mut visit: impl FnMut(Revision, Event<'a>) -> Result<bool>,
    ) -> Result<bool> {
        let mut reader = Reader { rest: self.entries };
        while !reader.rest.is_empty() {
            let revision = reader.revision()?;
            for _ in 0..reader.u32()? {
                let event = reader.event()?;
                if !visit(revision, event)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// The wall time of a row, without checking the rest.
pub(crate) fn segment_time(bytes: &[u8]) -> Result<i64> {
    let time = bytes.get(4..SEGMENT_HEADER).ok_or_else(short)?;
    Ok(Reader { rest: time }.u64()? as i64)
}

fn lease_number(lease: Option<LeaseId>) -> u64 {
    lease.map_or(0, |lease| lease.0)
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(bytes);
    hasher.finalize()
}

fn checked<'a>(key: &[u8], bytes: &'a [u8], what: impl Fn() -> String) -> Result<Reader<'a>> {
    let mut reader = Reader { rest: bytes };
    let expected = reader
        .u32()
        .map_err(|_| EngineError::damaged(format!("{} is cut off", what())))?;
    if checksum(key, reader.rest) != expected {
        let detail = format!("{} does not match its checksum", what());
        return Err(EngineError::Damaged(detail));
    }
    Ok(reader)
}

fn short() -> EngineError {
    EngineError::damaged("a row ends too early")
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or_else(short)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk().ok_or_else(short)?;
        self.rest = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn revision(&mut self) -> Result<Revision> {
        Ok(Revision::from_u64(self.u64()?))
    }

    fn lease(&mut self) -> Result<Option<LeaseId>> {
        let number = self.u64()?;
        Ok((number != 0).then_some(LeaseId(number)))
    }

    fn event(&mut self) -> Result<Event<'a>> {
        let [flags] = self.array()?;
        let length = u16::from_le_bytes(self.array()?);
        let key = self.bytes(usize::from(length))?;
        let put = if flags & IS_PUT == 0 {
            None
        } else {
            Some(Put {
                created: self.revision()?,
                lease: self.lease()?,
            })
        };
        let before = if flags & HAS_BEFORE == 0 {
            None
        } else {
            Some(Stored {
                created: self.revision()?,
                modified: self.revision()?,
                lease: self.lease()?,
                value: {
                    let length = self.u32()?;
                    self.bytes(length as usize)?
                },
            })
        };
        Ok(Event { key, put, before })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(value: &[u8]) -> Stored<'_> {
        Stored {
            created: Revision::new(0, 3),
            modified: Revision::new(1, 9),
            lease: Some(LeaseId(77)),
            value,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_any_flipped_bit_is_found() {
        let mut bytes = Vec::new();
        stored(b"value").encode_into(b"a/b", &mut bytes);
        assert_eq!(Stored::decode(b"a/b", &bytes).unwrap(), stored(b"value"));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Stored::decode(b"a/b", &flipped).is_err(), "bit {bit}");
        }
        // A record under another key is damage too.
        assert!(Stored::decode(b"a/c", &bytes).is_err());
        for length in 0..bytes.len() {
            assert!(Stored::decode(b"a/b", &bytes[..length]).is_err());
        }
    }

    #[test]
    fn history_comes_back_in_order() {
        let mut builder = SegmentBuilder::new(-5);
        let put = Some(Put {
            created: Revision::new(0, 1),
            lease: None,
        });
        builder.begin(Revision::new(0, 4));
        builder.push(&Event {
            key: b"a",
            put,
            before: Some(stored(b"old")),
        });
        builder.push(&Event {
            key: b"b",
            put: None,
            before: Some(stored(b"gone")),
        });
        builder.begin(Revision::new(0, 5));
        builder.push(&Event {
            key: b"c",
            put,
            before: None,
        });
        let (first, bytes) = builder.finish().unwrap();
        assert_eq!(first, 4);
        assert_eq!(segment_time(&bytes).unwrap(), -5);
        let mut seen = Vec::new();
        let segment = Segment::decode(first, &bytes).unwrap();
        segment
            .for_each(|revision, event| {
                seen.push((revision.counter(), event.key, event.before.is_some()));
                Ok(true)
            })
            .unwrap();
        assert_eq!(
            seen,
            [
                (4, b"a".as_slice(), true),
                (4, b"b", true),
                (5, b"c", false)
            ]
        );
        let mut flipped = bytes.clone();
        flipped[20] ^= 4;
        assert!(Segment::decode(first, &flipped).is_err());
    }

    #[test]
    fn the_state_comes_back_and_nonsense_is_refused() {
        let state = State {
            revision: Revision::new(2, 10),
            oldest: Revision::new(2, 3),
            history_bytes: 99,
            opens: 4,
        };
        assert_eq!(State::decode(&state.encode()).unwrap(), state);
        assert!(State::decode(b"").is_err());
        assert!(State::decode(&[0; 36]).is_err());
    }
}
