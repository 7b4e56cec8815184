//! A mirror of the objects that a program works with, kept up to date by watches.
//!
//! A cache holds records as the bytes they were stored as and decodes an object when it is read,
//! so its size stays near that of the data ([`Cached`] says what else is kept). All that one transaction changed appears at
//! once. A [`View`] is everything at one moment and does not change while it is held: what a
//! reconcile sees of several kinds fits together. A record that cannot be read is set aside,
//! where [`View::set_aside`] shows it, and stops nothing else.
//!
//! Each prefix that is mirrored is a *source*: it is listed, then watched. A list that follows a
//! gap is compared with what was known, so that a delete in the gap is seen, and must show the
//! store's anchor: without it an empty answer is an error and no empty fleet.

mod edit;
mod entry;
mod fill;
mod head;
mod header;
mod index;
mod labels;
mod options;
mod owners;
mod reader;
mod scan;
mod sorted;
mod source;
mod view;
mod writer;

pub(crate) use edit::EntryChange;
pub(crate) use entry::{Entry, Slot};
pub use head::{Head, HeadOwner};
pub(crate) use options::Options;
pub use options::{Cached, Index, Keep};
pub use owners::{Owners, Tally};
pub use reader::Reader;
pub(crate) use source::{Feed, Source, SourceState, feed};
pub use source::{SourceError, SourceStatus, write_prefix_anchor};
pub(crate) use view::InVain;
pub use view::{Freshness, Query, View};
pub(crate) use writer::{Writer, cache};
