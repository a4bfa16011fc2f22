//! What several topics need.

pub(crate) mod backends;
pub(crate) mod folder;
pub(crate) mod golden;
pub(crate) mod log;
pub(crate) mod runner;
