//! The HTTP client for one signal: sends what is given to it to the collector, and waits for the answer.

use std::future::{Future, ready};
use std::io::Write;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use ureq::Agent;
use ureq::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use ureq::http::{HeaderMap, HeaderValue, Method, Uri};

use crate::deadline::Deadline;
use crate::failure::Failure;
use crate::http_client::{Answer, EXPLANATION, Url, agent, exchange};
use crate::lock::locked;
use crate::secret::Secret;
use crate::settings::TelemetrySettings;
use crate::visible::printable;

/// The most characters of what the collector says that are repeated.
const SHOWN: usize = 200;

/// The collector, for one signal.
pub(super) struct Collector {
    agent: Agent,
    /// As it is set, and as it is shown.
    uri: Uri,
    url: Url,
    headers: HeaderMap,
    timeout: Duration,
    is_compressed: bool,
    /// Why the last request failed.
    failure: Mutex<Option<String>>,
    /// How many spans or points the collector has refused of what it took.
    rejected: AtomicU64,
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Collector({})", self.url)
    }
}

impl Collector {
    /// The collector at this URL. Connects to nothing yet.
    pub fn new(url: &Secret, settings: &TelemetrySettings) -> Option<Self> {
        let uri: Uri = url.reveal().parse().ok()?;
        let url: Url = url.reveal().parse().ok()?;
        let mut headers = HeaderMap::new();
        if let Some(login) = url.authorization() {
            headers.insert(AUTHORIZATION, login);
        }
        for (name, value) in &settings.headers {
            let mut value = HeaderValue::from_str(value.reveal()).ok()?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        Some(Self {
            agent: agent(),
            uri,
            url,
            headers,
            timeout: settings.timeout,
            is_compressed: settings.is_compressed,
            failure: Mutex::default(),
            rejected: AtomicU64::new(0),
        })
    }

    /// Where it is.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Where it is, for messages.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Sends one message, within the time limit.
    ///
    /// # Errors
    /// The collector has not taken it: in words, without a secret.
    pub fn send(&self, message: &impl Message) -> Result<(), String> {
        let (mut body, mut encoding) = (message.encode_to_vec(), None);
        if self.is_compressed {
            body = compressed(&body).map_err(|error| error.to_string())?;
            encoding = Some("gzip");
        }
        let mut request = Request::new(Bytes::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-protobuf"),
        );
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        match self.exchange(request) {
            Ok(answer) if answer.status.is_success() => Ok(()),
            _ => Err(self.last_failure()),
        }
    }

    /// Why the last request failed.
    pub fn last_failure(&self) -> String {
        let failure = self.failure().clone();
        failure.unwrap_or_else(|| format!("{} takes nothing", self.url))
    }

    /// How many spans or points the collector has refused since the last call, although it took the request.
    pub fn take_rejected(&self) -> u64 {
        self.rejected.swap(0, Ordering::Relaxed)
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        locked(&self.failure)
    }

    /// Makes the request with the headers that are set, and notes what is wrong with the answer.
    fn exchange(&self, request: Request<Bytes>) -> Result<Answer, Failure> {
        let (mut head, body) = request.into_parts();
        head.headers.extend(self.headers.clone());
        let request = Request::from_parts(head, &body[..]);
        let limit = Deadline::NONE.begin(self.timeout);
        let answer = exchange(&self.agent, request, &self.url, limit, EXPLANATION);
        *self.failure() = match &answer {
            Err(failure) => Some(failure.message.clone()),
            Ok(answer) if answer.status.is_success() => self.note_partial_success(&answer.body),
            Ok(answer) => Some(format!(
                "{} answers with HTTP {}",
                self.url,
                answer.status.as_u16()
            )),
        };
        answer
    }

    /// Counts what the collector has refused of a request that it took. The answer to metrics has the same fields.
    fn note_partial_success(&self, body: &[u8]) -> Option<String> {
        let answer = ExportTraceServiceResponse::decode(body).ok()?;
        let refused = answer.partial_success?;
        let count = u64::try_from(refused.rejected_spans).unwrap_or(0);
        self.rejected.fetch_add(count, Ordering::Relaxed);
        let why: String = printable(&refused.error_message)
            .chars()
            .take(SHOWN)
            .collect();
        (count > 0).then(|| format!("{} refuses some: {why}", self.url))
    }
}

fn compressed(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// The exporter of spans wants a future. This one has its answer when it is made: the call blocks, in a thread that
/// does nothing else.
impl HttpClient for Collector {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let answered = self.exchange(request).map(|answer| {
            let mut response = Response::new(Bytes::from(answer.body));
            *response.status_mut() = answer.status;
            *response.headers_mut() = answer.headers;
            response
        });
        Box::pin(ready(answered.map_err(|failure| failure.message.into())))
    }
}

/// The result of a future that blocks and never waits; `None` for any other.
pub(super) fn finished<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}
