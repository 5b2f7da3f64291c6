//! One module per command. A command imports no other command: what two of them share is a module beside `commands`.

pub(crate) mod cleanup;
pub(crate) mod completions;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod metrics;
pub(crate) mod orders;
pub(crate) mod reconcile;
pub(crate) mod replay;
pub(crate) mod secrets;
pub(crate) mod send;
pub(crate) mod signature;
pub(crate) mod statements;
pub(crate) mod sweep;
pub(crate) mod tenants;
pub(crate) mod trace;
