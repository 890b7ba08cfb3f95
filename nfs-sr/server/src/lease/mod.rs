//! Leases: who may write a virtual disk. The rules are those of [`nfs3::lease`].
//!
//! The table is in memory; every change is in the [`journal`] before it is answered. A lease that has
//! expired still fences: others may acquire it, but handles from LOOKUP may not write until somebody does or an operator
//! breaks it, since its holder may only have been slow. Renewals are not journaled: after a restart every lease
//! gets its full time again, and so nobody can lose one to a restart.

mod journal;
mod program;
mod state;
mod table;

pub use journal::JournalError;
pub use program::serve;
pub use state::View;
pub use table::{Access, Denied, Leases, Refusal, holders};
