//! A trace of each vCon: the spans that a lane records, and the thread that sends them.
//!
//! ```text
//! vcon_processing.<chain>   ··· link to the producer's span, which came with the claim
//!   ├─ link.<name>          from its first attempt to its last
//!   └─ storage.<name>       likewise; those of one vCon may overlap
//! ```
//!
//! A link or storage has one span for each claim, however often it is tried: every failed attempt is an `exception`
//! event in it, and its status is an error if the last attempt failed. What the egress lists get as the context of the
//! vCon is the span of the whole.

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use opentelemetry::trace::{
    Link, Span, SpanBuilder, SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter as _,
    SpanProcessor,
};
use serde::Deserialize;

use super::collector::{Collector, finished};
use super::resource::resource;
use crate::failure::{Failure, FailureKind};
use crate::scoreboard::Slot;
use crate::settings::TelemetrySettings;
use crate::spelling::counted;

/// The most spans that wait to be sent: some 5 MB.
const MOST_WAITING: usize = 4096;

/// The most spans that are sent together.
const BATCH: usize = 512;

/// How long spans wait at most for others to go with.
const PAUSE: Duration = Duration::from_secs(1);

/// The pauses between attempts double, from the first to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// The log names dropped spans at most once in this time.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// The most characters of an error that go with a span.
const LONGEST_MESSAGE: usize = 4096;

/// The spans of a worker. Dropped, it sends nothing more.
pub struct Tracing {
    tracer: SdkTracer,
    /// Kept: a tracer whose provider is gone records nothing.
    _provider: SdkTracerProvider,
    exporter: ExporterThread,
}

impl Tracing {
    /// Starts the thread that sends spans, if they are sent anywhere. To be called in the process that has the lanes.
    ///
    /// # Errors
    /// There is no thread to be had, or the exporter cannot be made: in words.
    pub fn start(settings: &TelemetrySettings, slot: &Slot) -> Result<Option<Self>, String> {
        let Some(url) = &settings.traces else {
            return Ok(None);
        };
        let collector = Collector::new(url, settings).ok_or("its settings cannot be used")?;
        let collector = Arc::new(collector);
        let resource = resource(settings);
        let builder = SpanExporter::builder().with_http();
        let mut builder = builder
            .with_shared_http_client(Arc::clone(&collector) as _)
            .with_endpoint(collector.uri().to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(settings.timeout)
            .with_retry_policy(
                // As often as the time limit allows.
                RetryPolicy::recommended()
                    .with_max_retries(usize::MAX)
                    .with_initial_delay(FIRST_RETRY)
                    .with_max_delay(LAST_RETRY)
                    .with_max_jitter(FIRST_RETRY),
            );
        if settings.is_compressed {
            builder = builder.with_compression(opentelemetry_otlp::Compression::Gzip);
        }
        let mut exporter = builder.build().map_err(|error| error.to_string())?;
        exporter.set_resource(&resource);
        let lost = Lost::new(slot.clone());
        let thread = ExporterThread::start(exporter, collector, lost);
        let (processor, exporter) = thread.map_err(|error| error.to_string())?;
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(sampler(settings.sampled))
            .with_resource(resource)
            .build();
        let scope = InstrumentationScope::builder("conserver")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Some(Self {
            tracer: provider.tracer_with_scope(scope),
            _provider: provider,
            exporter,
        }))
    }

    /// Begins the trace of a vCon that was claimed at `started`. `entry` is its UUID, and `producer` the context that
    /// came with it, if any.
    pub fn begin(&self, entry: &str, chain: &str, producer: &[u8], started: Instant) -> VconTrace {
        let links = producer_context(producer).map(Link::with_context);
        let builder = SpanBuilder::from_name(format!("vcon_processing.{chain}"))
            .with_start_time(time_of(started))
            .with_links(links.into_iter().collect())
            .with_attributes([
                KeyValue::new("vcon_id", entry.to_owned()),
                KeyValue::new("chain_name", chain.to_owned()),
                KeyValue::new("vcon.uuid", entry.to_owned()),
            ]);
        let root = self.tracer.build_with_context(builder, &Context::new());
        let stored = match root.is_recording() {
            true => stored_context(root.span_context()).into_bytes(),
            // Nobody sends this one: what comes after goes on from the one before.
            false => producer.to_vec(),
        };
        VconTrace {
            tracer: self.tracer.clone(),
            chain: chain.to_owned(),
            root: Context::new().with_span(root),
            stored,
            link: None,
            storages: Vec::new(),
        }
    }

    /// Sends what waits, for at most `limit`, and ends.
    pub fn close(&self, limit: Duration) {
        self.exporter.close(limit);
    }
}

fn sampler(sampled: u32) -> Sampler {
    match sampled {
        0 => Sampler::AlwaysOff,
        1_000_000.. => Sampler::AlwaysOn,
        share => Sampler::TraceIdRatioBased(f64::from(share) / 1e6),
    }
}

/// The trace of one vCon, from its claim to its end. If it is dropped before, what is open ends then.
pub struct VconTrace {
    tracer: SdkTracer,
    chain: String,
    /// The span of the whole, as the parent of the others.
    root: Context,
    /// The context that goes with the vCon, as it is stored in Redis: its own, or that of the producer if this
    /// trace is not sent. Empty if there is none.
    stored: Vec<u8>,
    link: Option<SdkSpan>,
    /// The storages that have been tried and do not have the vCon yet.
    storages: Vec<(String, SdkSpan)>,
}

impl VconTrace {
    /// The context that goes with a vCon to another list, as JSON.
    pub fn context(&self) -> Option<&[u8]> {
        (!self.stored.is_empty()).then_some(&*self.stored)
    }

    /// A link has begun at `started`, the `index`th of its chain.
    pub fn begin_link(&mut self, vcon: &str, name: &str, index: usize, started: Instant) {
        let builder = SpanBuilder::from_name(format!("link.{name}"))
            .with_start_time(time_of(started))
            .with_attributes([
                KeyValue::new("vcon_id", vcon.to_owned()),
                KeyValue::new("link_name", name.to_owned()),
                KeyValue::new("link_index", i64::try_from(index).unwrap_or(i64::MAX)),
                KeyValue::new("chain_name", self.chain.clone()),
            ]);
        self.link = Some(self.tracer.build_with_context(builder, &self.root));
    }

    /// An attempt of the link that runs has failed.
    pub fn note_failed_attempt(&mut self, failure: &Failure, attempt: u32) {
        if let Some(link) = &mut self.link {
            let event = exception(failure.kind, &failure.message, Some(attempt));
            link.add_event("exception", event);
        }
    }

    /// The link that runs has ended; `failed` says why it has failed.
    pub fn end_link(&mut self, failed: Option<&str>) {
        if let Some(mut link) = self.link.take() {
            if let Some(why) = failed {
                link.set_status(Status::error(cut(why)));
            }
            link.end();
        }
    }

    /// A storage was tried: it began at `started` and took this time.
    pub fn note_save(
        &mut self,
        vcon: &str,
        name: &str,
        (started, took): (Instant, Duration),
        result: &Result<(), Failure>,
        attempt: u32,
    ) {
        let began = time_of(started);
        let ended = began + took;
        let place = self.storages.iter().position(|(tried, _)| tried == name);
        let mut span = match place {
            Some(place) => self.storages.swap_remove(place).1,
            None => {
                let builder = SpanBuilder::from_name(format!("storage.{name}"))
                    .with_start_time(began)
                    .with_attributes([
                        KeyValue::new("vcon_id", vcon.to_owned()),
                        KeyValue::new("storage_name", name.to_owned()),
                        KeyValue::new("chain_name", self.chain.clone()),
                    ]);
                self.tracer.build_with_context(builder, &self.root)
            }
        };
        match result {
            Ok(()) => span.end_with_timestamp(ended),
            Err(failure) => {
                let event = exception(failure.kind, &failure.message, Some(attempt));
                span.add_event_with_timestamp("exception", ended, event);
                // Until an attempt succeeds, or the vCon ends: no success replaces a status that is an error.
                self.storages.push((name.to_owned(), span));
            }
        }
    }

    /// The vCon has gone through its chain. Storages that did not take it have their error in their own spans.
    pub fn end(mut self) {
        self.end_storages();
        self.root.span().end();
    }

    /// The vCon has not got to the end of its chain, for this reason.
    pub fn fail(mut self, kind: FailureKind, message: &str) {
        self.end_link(Some(message));
        self.end_storages();
        let root = self.root.span();
        root.add_event("exception", exception(kind, message, None));
        root.set_status(Status::error(cut(message)));
        root.end();
    }

    /// The vCon goes back to its list although nothing has failed, as when the worker drains.
    pub fn give_back(mut self, why: &'static str) {
        self.end_link(None);
        self.end_storages();
        let root = self.root.span();
        root.add_event("returned", vec![KeyValue::new("reason", why)]);
        root.end();
    }

    fn end_storages(&mut self) {
        for (_, mut span) in self.storages.drain(..) {
            span.set_status(Status::error("all attempts have failed"));
            span.end();
        }
    }
}

fn time_of(instant: Instant) -> SystemTime {
    let time = SystemTime::now().checked_sub(instant.elapsed());
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn exception(kind: FailureKind, message: &str, attempt: Option<u32>) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("exception.type", format!("{kind:?}")),
        KeyValue::new("exception.message", cut(message)),
    ];
    attributes.extend(attempt.map(|attempt| KeyValue::new("attempt", i64::from(attempt))));
    attributes
}

fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(LONGEST_MESSAGE)].to_owned()
}

/// The context of a producer, as it stands in Redis.
#[derive(Deserialize)]
struct StoredContext {
    trace_id: String,
    span_id: String,
    #[serde(default)]
    trace_flags: u8,
}

/// The span of the producer; `None` if there is none, or the text makes no sense.
fn producer_context(text: &[u8]) -> Option<SpanContext> {
    if text.is_empty() {
        return None;
    }
    let read = read_context(text);
    if read.is_none() {
        log::debug!("the context that came with a vCon is not that of a span, and is ignored");
    }
    read
}

fn read_context(text: &[u8]) -> Option<SpanContext> {
    let stored: StoredContext = serde_json::from_slice(text).ok()?;
    let is_hex = |text: &str, digits: usize| {
        text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    if !is_hex(&stored.trace_id, 32) || !is_hex(&stored.span_id, 16) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(&stored.trace_id).ok()?,
        SpanId::from_hex(&stored.span_id).ok()?,
        TraceFlags::new(stored.trace_flags),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

fn stored_context(context: &SpanContext) -> String {
    let mut text = String::with_capacity(128);
    // Hexadecimal digits need no escaping. Writing to a string does not fail.
    let _ = write!(
        text,
        r#"{{"trace_id": "{}", "span_id": "{}", "trace_flags": {}, "is_sampled": {}}}"#,
        context.trace_id(),
        context.span_id(),
        context.trace_flags().to_u8(),
        context.is_sampled(),
    );
    text
}

/// What the lanes give to the thread.
#[derive(Debug)]
struct QueueProcessor {
    spans: Sender<SpanData>,
    wake: Sender<()>,
    lost: Arc<Lost>,
}

impl SpanProcessor for QueueProcessor {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.lost.count(1);
        } else if self.spans.len() >= BATCH {
            // Otherwise the thread looks by itself: to wake it for each span would cost the lanes more than the span.
            let _ = self.wake.try_send(());
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Spans that nobody gets.
struct Lost {
    slot: Slot,
    unlogged: AtomicU64,
    /// How many are being sent, of which it is not known yet.
    sending: AtomicU64,
}

impl std::fmt::Debug for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lost({})", self.unlogged.load(Ordering::Relaxed))
    }
}

impl Lost {
    fn new(slot: Slot) -> Arc<Self> {
        Arc::new(Self {
            slot,
            unlogged: AtomicU64::new(0),
            sending: AtomicU64::new(0),
        })
    }

    fn count(&self, spans: u64) {
        self.slot.count_telemetry_dropped(spans);
        self.unlogged.fetch_add(spans, Ordering::Relaxed);
    }
}

/// The thread that sends spans, as the worker sees it.
struct ExporterThread {
    /// Tells the thread to send what waits and to end, by this time.
    stop: Sender<Instant>,
    ended: Receiver<()>,
    waiting: Receiver<SpanData>,
    lost: Arc<Lost>,
}

impl ExporterThread {
    fn start(
        exporter: SpanExporter,
        collector: Arc<Collector>,
        lost: Arc<Lost>,
    ) -> io::Result<(QueueProcessor, Self)> {
        let (spans, waiting) = bounded(MOST_WAITING);
        let (wake, woken) = bounded(1);
        let (stop, stopped) = bounded(1);
        let (end, ended) = bounded::<()>(0);
        let work = Exporting {
            exporter,
            collector,
            lost: Arc::clone(&lost),
            waiting: waiting.clone(),
            failing_since: None,
            logged: None,
        };
        let run = move || {
            work.run(&woken, &stopped);
            drop(end);
        };
        let thread = thread::Builder::new().name("telemetry".to_owned());
        thread.spawn(run)?;
        let exporter = Self {
            stop,
            ended,
            waiting,
            lost: Arc::clone(&lost),
        };
        Ok((QueueProcessor { spans, wake, lost }, exporter))
    }

    fn close(&self, limit: Duration) {
        if self.stop.try_send(Instant::now() + limit).is_err() {
            return;
        }
        // The thread closes the channel at its end.
        if self.ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            let left = self.waiting.len() as u64 + self.lost.sending.load(Ordering::Relaxed);
            self.lost.slot.count_telemetry_dropped(left);
            let left = counted(left, "span");
            log::warn!("{left} dropped: the collector has not taken them before the worker ended");
        }
    }
}

/// The thread's own state.
struct Exporting {
    exporter: SpanExporter,
    collector: Arc<Collector>,
    lost: Arc<Lost>,
    waiting: Receiver<SpanData>,
    /// Since when nothing has been taken.
    failing_since: Option<Instant>,
    /// When the log last named dropped spans.
    logged: Option<Instant>,
}

impl Exporting {
    fn run(mut self, woken: &Receiver<()>, stopped: &Receiver<Instant>) {
        loop {
            let stop = select! {
                recv(stopped) -> until => Some(until.ok()),
                recv(woken) -> _ => None,
                default(PAUSE) => None,
            };
            match stop {
                None => self.send_waiting(None),
                Some(until) => {
                    self.send_waiting(until);
                    let left = self.waiting.len() as u64;
                    if left > 0 {
                        self.lost.count(left);
                    }
                    self.logged = None;
                    self.log_lost();
                    return;
                }
            }
            self.log_lost();
        }
    }

    /// Sends what waits by now, until the time that is given.
    fn send_waiting(&mut self, until: Option<Instant>) {
        let mut left = self.waiting.len();
        while left > 0 && until.is_none_or(|until| Instant::now() < until) {
            let batch: Vec<SpanData> = self.waiting.try_iter().take(BATCH).collect();
            let count = batch.len();
            left = left.saturating_sub(count.max(1));
            self.send(batch, count as u64);
            // A collector that hangs takes long for each batch.
            self.log_lost();
            if until.is_some() && self.failing_since.is_some() {
                // The end does not wait for a collector that takes nothing.
                return;
            }
        }
    }

    fn send(&mut self, batch: Vec<SpanData>, count: u64) {
        // It tries again, within the time limit, what may pass.
        self.lost.sending.store(count, Ordering::Relaxed);
        let taken = finished(self.exporter.export(batch));
        self.lost.sending.store(0, Ordering::Relaxed);
        if let Some(Ok(())) = taken {
            let refused = self.collector.take_rejected().min(count);
            self.lost.slot.count_telemetry_sent(count - refused);
            if refused > 0 {
                self.lost.count(refused);
            }
            if let Some(since) = self.failing_since.take() {
                log::info!(
                    "{} takes spans again, after {:.0?}",
                    self.collector.url(),
                    since.elapsed()
                );
            }
            return;
        }
        self.lost.count(count);
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// Logs how many spans were dropped since the last time, if that is long enough ago.
    fn log_lost(&mut self) {
        if self.logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
            return;
        }
        let lost = self.lost.unlogged.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.logged = Some(Instant::now());
            log::warn!(
                "{} dropped: {}",
                counted(lost, "span"),
                self.collector.last_failure()
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_producers_context_is_read_and_what_is_none_is_ignored() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let good = format!(r#"{{"trace_id":"{trace}","span_id":"{span}","trace_flags":1,"x":2}}"#);
        let context = producer_context(good.as_bytes()).unwrap();
        assert_eq!(context.trace_id().to_string(), trace);
        assert_eq!(context.span_id().to_string(), span);
        assert!(context.is_sampled() && context.is_remote());
        let bare = format!(r#"{{"trace_id":"{trace}","span_id":"{span}"}}"#);
        assert!(!producer_context(bare.as_bytes()).unwrap().is_sampled());
        let zero = format!(r#"{{"trace_id":"{}","span_id":"{span}"}}"#, "0".repeat(32));
        let signed = format!(r#"{{"trace_id":"+{}","span_id":"{span}"}}"#, &trace[1..]);
        let short = format!(r#"{{"trace_id":"{}","span_id":"{span}"}}"#, &trace[1..]);
        let wide = format!(r#"{{"trace_id":"{trace}","span_id":"{span}","trace_flags":256}}"#);
        for text in ["", "{", "[]", "null", &zero, &signed, &short, &wide] {
            assert!(producer_context(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn the_stored_context_is_read_as_the_span_it_is_of() {
        let provider = SdkTracerProvider::builder().build();
        let span = provider.tracer("test").start("span");
        let stored = stored_context(span.span_context());
        let value: serde_json::Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(value["trace_flags"], 1);
        assert_eq!(value["is_sampled"], true);
        assert_eq!(value["trace_id"].as_str().unwrap().len(), 32);
        assert_eq!(value["span_id"].as_str().unwrap().len(), 16);
        let read = read_context(stored.as_bytes()).unwrap();
        assert_eq!(read.trace_id(), span.span_context().trace_id());
        assert_eq!(read.span_id(), span.span_context().span_id());
    }

    #[test]
    fn a_long_message_is_cut_between_letters() {
        let long = "ä".repeat(LONGEST_MESSAGE);
        assert_eq!(cut(&long).len(), LONGEST_MESSAGE);
        assert_eq!(cut("short"), "short");
    }
}
