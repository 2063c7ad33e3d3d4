//! A server that plays Deepgram, OpenAI, Groq and Hugging Face, keeps audio files, and passes for a proxy.
//!
//! It is strict: what is not as the real services want it (path, query, headers, form, JSON) is answered with 400
//! and kept as a fault, which [`Speech::faults`] returns. What it "hears" in audio is what stands behind the head
//! of the file ([`recording`]).

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The key that each of the services takes.
pub const SPEECH_KEY: &str = "sk-GeheimerSchluessel";

/// What the server does with a request to transcribe, in turn; once nothing is left it transcribes.
#[derive(Clone)]
pub enum Say {
    /// Transcribes.
    Yes,
    /// The same, with this confidence.
    Confidence(f64),
    /// Answers with this status, these lines in its head and this body.
    Status(u16, &'static str, Value),
    /// Answers 200 with a body that is not what it should be.
    Body(&'static str),
    /// Transcribes, but only after this time.
    Slowly(Duration),
    /// Closes the connection before the body is read.
    CutBefore,
    /// Closes it without an answer.
    CutAfter,
    /// Closes it within the head of the answer.
    CutInHead,
    /// Closes it within the body of the answer.
    CutInBody,
    /// Does not answer as long as the test lasts.
    Never,
}

/// A request to transcribe.
#[derive(Debug, Clone)]
pub struct Heard {
    pub vendor: &'static str,
    /// What was heard, or the URL that the service got.
    pub text: String,
    /// The length of the audio.
    pub length: usize,
    pub media_type: String,
    pub file_name: String,
    /// The fields of the form, or the query.
    pub fields: Vec<(String, String)>,
}

#[derive(Default)]
struct State {
    say: VecDeque<Say>,
    heard: Vec<Heard>,
    faults: Vec<String>,
    fetched: Vec<String>,
    files: BTreeMap<String, Vec<u8>>,
    /// Statuses for the next requests of files.
    files_say: VecDeque<u16>,
    tunnels: Vec<String>,
}

/// The server.
pub struct Speech {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// Audio in which this is said: a head of WAV, and the words.
pub fn recording(words: &str) -> Vec<u8> {
    let mut bytes = b"RIFF\x24\0\0\0WAVE".to_vec();
    bytes.extend(words.as_bytes());
    bytes
}

/// What is said in audio.
fn words_of(audio: &[u8]) -> String {
    let words = audio.get(12..).unwrap_or_default();
    match words.len() {
        0..1000 => String::from_utf8_lossy(words).into_owned(),
        length => format!("{length} bytes"),
    }
}

struct Request {
    method: String,
    path: String,
    query: Vec<(String, String)>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A field of a form.
struct Field {
    name: String,
    file_name: Option<String>,
    media_type: Option<String>,
    value: Vec<u8>,
}

impl Speech {
    pub fn new() -> Self {
        Self::saying(&[])
    }

    pub fn saying(say: &[Say]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let state = Arc::new(Mutex::new(State::default()));
        let speech = Self { port, state };
        speech.say(say);
        let state = Arc::clone(&speech.state);
        // Ends with the test process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || serve(stream, &state, port));
            }
        });
        speech
    }

    /// What it does with the next requests.
    pub fn say(&self, say: &[Say]) {
        self.lock().say.extend(say.iter().cloned());
    }

    /// The statuses of the next requests of files.
    pub fn files_say(&self, statuses: &[u16]) {
        self.lock().files_say.extend(statuses);
    }

    /// Puts a file onto the server, and returns its URL.
    pub fn file(&self, name: &str, bytes: Vec<u8>) -> String {
        self.lock().files.insert(name.to_owned(), bytes);
        format!("{}/audio/{name}", self.url())
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All requests to transcribe that were well formed.
    pub fn heard(&self) -> Vec<Heard> {
        self.lock().heard.clone()
    }

    /// What was heard, in order.
    pub fn texts(&self) -> Vec<String> {
        let heard = self.heard();
        heard.into_iter().map(|heard| heard.text).collect()
    }

    /// What was wrong with requests.
    pub fn faults(&self) -> Vec<String> {
        self.lock().faults.clone()
    }

    /// The paths of the files that were asked for.
    pub fn fetched(&self) -> Vec<String> {
        self.lock().fetched.clone()
    }

    /// The hosts that it was asked to tunnel to.
    pub fn tunnels(&self) -> Vec<String> {
        self.lock().tunnels.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection; whatever goes wrong with it ends it.
fn serve(stream: TcpStream, state: &Mutex<State>, port: u16) -> Option<()> {
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    let mut head = read_head(&mut reader)?;
    if head.starts_with("CONNECT ") {
        let host = head.split(' ').nth(1)?.to_owned();
        lock(state).tunnels.push(host);
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
        head = read_head(&mut reader)?;
    }
    let mut request = parse_head(&head)?;
    let is_call = request.method == "POST";
    let say = is_call.then(|| lock(state).say.pop_front().unwrap_or(Say::Yes));
    if matches!(say, Some(Say::CutBefore)) {
        return None;
    }
    let length: usize = match request.headers.get("content-length") {
        Some(length) => length.parse().ok()?,
        None => 0,
    };
    request.body = vec![0; length];
    reader.read_exact(&mut request.body).ok()?;
    let Some(say) = say else {
        return answer_get(&mut stream, &request, state, port);
    };
    match heard(&request) {
        Ok((heard, body)) => {
            lock(state).heard.push(heard);
            answer_call(&mut stream, say, body)
        }
        Err(fault) => {
            let body = json!({"error": {"message": fault, "code": "strict"}});
            lock(state)
                .faults
                .push(format!("{} {}: {fault}", request.method, request.path));
            respond(&mut stream, 400, "", body.to_string().as_bytes())
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn parse_head(head: &str) -> Option<Request> {
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let decoded = |text: &str| {
        let text = percent_encoding::percent_decode_str(text);
        text.decode_utf8_lossy().into_owned()
    };
    let query = pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Request {
        method,
        path: path.to_owned(),
        query,
        headers,
        body: Vec::new(),
    })
}

fn respond(stream: &mut TcpStream, status: u16, lines: &str, body: &[u8]) -> Option<()> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} X\r\n{lines}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}

/// Files, redirects, and what a probe asks for.
fn answer_get(
    stream: &mut TcpStream,
    request: &Request,
    state: &Mutex<State>,
    port: u16,
) -> Option<()> {
    let path = request.path.as_str();
    if path.ends_with("/models") || path == "/v1/projects" {
        let is_known = request.header("authorization").ends_with(SPEECH_KEY);
        let status = if is_known { 200 } else { 401 };
        return respond(stream, status, "", b"{}");
    }
    lock(state).fetched.push(path.to_owned());
    if let Some(rest) = path.strip_prefix("/redirect/") {
        let (count, name) = rest.split_once('/')?;
        let to = match count {
            "inside" => format!("http://127.0.0.1:{port}/audio/{name}"),
            "cloud" => "http://169.254.169.254/latest/meta-data/".to_owned(),
            "0" => format!("/audio/{name}"),
            count => format!("/redirect/{}/{name}", count.parse::<u32>().ok()? - 1),
        };
        return respond(stream, 302, &format!("Location: {to}\r\n"), b"");
    }
    let status = lock(state).files_say.pop_front().unwrap_or(200);
    if status != 200 {
        return respond(stream, status, "", b"not now");
    }
    let name = path.strip_prefix("/audio/").unwrap_or_default();
    let file = lock(state).files.get(name).cloned();
    match file {
        Some(file) => respond(stream, 200, "Content-Type: audio/wav\r\n", &file),
        None => respond(stream, 404, "", b"no such file"),
    }
}

fn answer_call(stream: &mut TcpStream, say: Say, mut body: Value) -> Option<()> {
    match say {
        Say::Confidence(confidence) => {
            body["results"]["channels"][0]["alternatives"][0]["confidence"] = json!(confidence);
        }
        Say::Status(status, lines, body) => {
            return respond(stream, status, lines, body.to_string().as_bytes());
        }
        Say::Body(text) => return respond(stream, 200, "", text.as_bytes()),
        Say::Slowly(time) => thread::sleep(time),
        Say::CutAfter => return None,
        Say::CutInHead => return stream.write_all(b"HTTP/1.1 200 OK\r\nConte").ok(),
        Say::CutInBody => {
            let half = body.to_string().len() / 2;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", half * 2);
            stream.write_all(head.as_bytes()).ok()?;
            return stream.write_all(&body.to_string().as_bytes()[..half]).ok();
        }
        Say::Never => thread::sleep(Duration::from_secs(600)),
        Say::Yes | Say::CutBefore => {}
    }
    let text = body.to_string();
    respond(
        stream,
        200,
        "Content-Type: application/json\r\n",
        text.as_bytes(),
    )
}

/// What a request asks, and the answer; or what is wrong with it.
fn heard(request: &Request) -> Result<(Heard, Value), String> {
    let expect = |is_good: bool, what: &str| is_good.then_some(()).ok_or_else(|| what.to_owned());
    expect(
        !request.headers.contains_key("transfer-encoding"),
        "services want to know the length first",
    )?;
    let bearer = format!("Bearer {SPEECH_KEY}");
    match request.path.as_str() {
        "/v1/listen" => {
            let token = format!("Token {SPEECH_KEY}");
            expect(
                request.header("authorization") == token,
                "Authorization: Token",
            )?;
            deepgram(request)
        }
        "/v1/audio/transcriptions" => {
            expect(
                request.header("authorization") == bearer,
                "Authorization: Bearer",
            )?;
            form("openai", request)
        }
        "/groq/openai/v1/audio/transcriptions" => {
            expect(
                request.header("authorization") == bearer,
                "Authorization: Bearer",
            )?;
            form("groq", request)
        }
        "/azure/openai/deployments/whisper-1/audio/transcriptions" => {
            expect(request.header("api-key") == SPEECH_KEY, "api-key")?;
            expect(
                !request.headers.contains_key("authorization"),
                "no Authorization",
            )?;
            let version = [("api-version".to_owned(), "2024-10-21".to_owned())];
            expect(request.query == version, "api-version")?;
            form("azure", request)
        }
        "/hf" => {
            expect(
                request.header("authorization") == bearer,
                "Authorization: Bearer",
            )?;
            expect(request.header("accept") == "application/json", "Accept")?;
            expect(
                request.header("content-type") == "audio/flac",
                "Content-Type",
            )?;
            let heard = of_bytes("hugging_face", request, Vec::new());
            let body = json!({"text": heard.text});
            Ok((heard, body))
        }
        _ => Err("no such path".to_owned()),
    }
}

fn of_bytes(vendor: &'static str, request: &Request, fields: Vec<(String, String)>) -> Heard {
    Heard {
        vendor,
        text: words_of(&request.body),
        length: request.body.len(),
        media_type: request.header("content-type").to_owned(),
        file_name: String::new(),
        fields,
    }
}

fn deepgram(request: &Request) -> Result<(Heard, Value), String> {
    let mut heard = of_bytes("deepgram", request, request.query.clone());
    if heard.media_type == "application/json" {
        let body: Value =
            serde_json::from_slice(&request.body).map_err(|error| error.to_string())?;
        let members = body.as_object().ok_or("no object")?;
        let url = members.get("url").and_then(Value::as_str);
        if members.len() != 1 {
            return Err(format!("more than a url: {body}"));
        }
        url.ok_or("no url")?.clone_into(&mut heard.text);
    } else if !heard.media_type.starts_with("audio/") {
        return Err(format!("content type {}", heard.media_type));
    }
    let text = &heard.text;
    let body = json!({
        "metadata": {"duration": 70.5},
        "results": {"channels": [{
            "alternatives": [{
                "transcript": text, "confidence": 0.98, "words": [],
                "paragraphs": {"transcript": text, "paragraphs": []},
            }],
            "detected_language": "de",
        }]},
    });
    Ok((heard, body))
}

fn form(vendor: &'static str, request: &Request) -> Result<(Heard, Value), String> {
    const KNOWN: [&str; 7] = [
        "model",
        "response_format",
        "language",
        "prompt",
        "temperature",
        "chunking_strategy",
        "timestamp_granularities[]",
    ];
    let fields = fields_of(request)?;
    let (files, texts): (Vec<Field>, Vec<Field>) =
        fields.into_iter().partition(|field| field.name == "file");
    let [file] = <[Field; 1]>::try_from(files).map_err(|_| "not one file")?;
    let mut named = Vec::new();
    for field in texts {
        if !KNOWN.contains(&field.name.as_str()) || field.file_name.is_some() {
            return Err(format!("unknown field {}", field.name));
        }
        let value = String::from_utf8(field.value).map_err(|_| "a field is no text")?;
        named.push((field.name, value));
    }
    let has = |name: &str| named.iter().filter(|(it, _)| it == name).count() == 1;
    if !has("model") || !has("response_format") {
        return Err("no model, or no response_format".to_owned());
    }
    let file_name = file.file_name.ok_or("the file has no name")?;
    let ending = file_name.rsplit('.').next().unwrap_or_default();
    let endings = [
        "flac", "m4a", "mp3", "mp4", "mpeg", "mpga", "oga", "ogg", "wav", "webm",
    ];
    if !endings.contains(&ending) {
        return Err(format!("unsupported file format {file_name}"));
    }
    let heard = Heard {
        vendor,
        text: words_of(&file.value),
        length: file.value.len(),
        media_type: file.media_type.ok_or("the file has no type")?,
        file_name,
        fields: named,
    };
    let body = json!({"text": heard.text, "usage": {"type": "tokens", "total_tokens": 7}});
    Ok((heard, body))
}

/// Takes a form apart as RFC 7578 has it.
fn fields_of(request: &Request) -> Result<Vec<Field>, String> {
    let media_type = request.header("content-type");
    let boundary = media_type
        .strip_prefix("multipart/form-data; boundary=")
        .ok_or_else(|| format!("content type {media_type}"))?;
    if boundary.is_empty() || boundary.len() > 70 {
        return Err("boundary".to_owned());
    }
    let mark = format!("--{boundary}").into_bytes();
    let mut rest = request
        .body
        .strip_prefix(mark.as_slice())
        .ok_or("the form does not begin with its boundary")?;
    let delimiter = [b"\r\n".as_slice(), &mark].concat();
    let mut fields = Vec::new();
    loop {
        if let Some(end) = rest.strip_prefix(b"--\r\n") {
            return if end.is_empty() {
                Ok(fields)
            } else {
                Err("something behind the form".to_owned())
            };
        }
        rest = rest.strip_prefix(b"\r\n").ok_or("no line break")?;
        let head_end = position(rest, b"\r\n\r\n").ok_or("a part without a head")?;
        let head = std::str::from_utf8(&rest[..head_end]).map_err(|_| "a head is no text")?;
        rest = &rest[head_end + 4..];
        let end = position(rest, &delimiter).ok_or("a part without an end")?;
        fields.push(field_of(head, rest[..end].to_vec())?);
        rest = &rest[end + delimiter.len()..];
    }
}

fn field_of(head: &str, value: Vec<u8>) -> Result<Field, String> {
    let mut field = Field {
        name: String::new(),
        file_name: None,
        media_type: None,
        value,
    };
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(": ").ok_or("a line without a name")?;
        match name.to_lowercase().as_str() {
            "content-type" => field.media_type = Some(value.to_owned()),
            "content-disposition" => {
                let names = value.strip_prefix("form-data; ").ok_or("no form-data")?;
                for name in names.split("; ") {
                    let (key, quoted) = name.split_once('=').ok_or("no value")?;
                    let text = quoted
                        .strip_prefix('"')
                        .and_then(|text| text.strip_suffix('"'))
                        .ok_or("no quotes")?
                        .to_owned();
                    match key {
                        "name" => field.name = text,
                        "filename" => field.file_name = Some(text),
                        other => return Err(format!("parameter {other}")),
                    }
                }
            }
            other => return Err(format!("header {other} in a part")),
        }
    }
    Ok(field)
}

/// Where something begins.
fn position(bytes: &[u8], what: &[u8]) -> Option<usize> {
    let first = *what.first()?;
    let mut from = 0;
    while let Some(found) = bytes[from..].iter().position(|byte| *byte == first) {
        if bytes[from + found..].starts_with(what) {
            return Some(from + found);
        }
        from += found + 1;
    }
    None
}
