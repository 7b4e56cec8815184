//! A store opened as *one root*: which store it is, in which epoch, and whether it may be
//! written; and how a root moves.
//!
//! A [`RootedStore`] gives every revision the root's epoch, which a person raises after a
//! restore, and lets every commit compare the anchor. So a commit that was decided on one store
//! never lands in another one, in an emptied one, in one that was restored meanwhile, or in one
//! that was [copied](copy) elsewhere.

mod change;
mod copy;
mod rooted;

pub use change::{restored, seal, unseal};
pub use copy::{CopyError, CopyProgress, CopyReport, copy};
pub use rooted::RootedStore;
