//! What is sent to a collector of OpenTelemetry: a trace of each vCon from the workers, metrics from the monitor.
//!
//! ```text
//! lane 1 ─┐ spans ┌─────────────┐          ┌──────────┐ HTTP, protobuf
//! lane N ─┴──────►│ bounded     ├─────────►│ exporter ├───────────────► collector /v1/traces
//!   (traces)      │ queue, else │ batches  │ thread   │
//!                 │ drop, count │          └──────────┘
//! monitor:        └─────────────┘
//!   scoreboard, lengths of lists ─► messages (metrics) ─► a thread ───► collector /v1/metrics
//! ```
//!
//! Everything begins in the process it belongs to, after the fork. No lane ever waits for the collector: what does not
//! fit in the queue is dropped and counted, in `/metrics` and in the log. Without an endpoint, nothing here exists.
//! The one HTTP client for both is in `collector`, and is that of links and storages.

mod collector;
mod metrics;
mod push;
mod resource;
mod traces;

pub use push::{PushThread, start};
pub use traces::{Tracing, VconTrace};
