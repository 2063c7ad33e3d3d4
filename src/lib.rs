//! The worker daemon for vCon conversations.

pub mod config;
pub mod failure;
pub mod http;
pub mod link;
pub mod secret;
pub mod settings;
pub mod storage;
pub mod vcon;
pub mod webhooks;
