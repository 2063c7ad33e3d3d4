//! Two signed PUTs for each vCon on a connection that is kept, one PUT after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use s3::command::Command;
use s3::creds::Credentials;
use s3::request::Request as _;
use s3::request::blocking::AttoRequest;
use s3::{Bucket, Region};

use super::super::harness::S3_SECRET;
use super::super::servers::Servers;
use super::{Keeper, Taken};

pub struct S3 {
    bucket: Box<Bucket>,
    connection: BufReader<TcpStream>,
}

impl S3 {
    pub fn open(servers: &Servers) -> Self {
        let port = servers.s3.port();
        let region = Region::Custom {
            region: "us-east-1".to_owned(),
            endpoint: format!("http://127.0.0.1:{port}"),
        };
        let keys = Credentials::new(Some("keeper"), Some(S3_SECRET), None, None, None);
        let bucket = Bucket::new("calls", region, keys.expect("keys")).expect("a bucket");
        let connection = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        connection.set_nodelay(true).expect("a connection");
        Self {
            bucket: bucket.with_path_style(),
            connection: BufReader::new(connection),
        }
    }

    fn put(&mut self, key: &str, content: &[u8]) {
        let command = Command::PutObject {
            content,
            content_type: "binary/octet-stream",
            custom_headers: None,
            multipart: None,
        };
        let signed = AttoRequest::new(&self.bucket, key, command).expect("a request");
        let mut request = format!("PUT /calls/{key} HTTP/1.1\r\n").into_bytes();
        for (name, value) in &signed.headers().expect("headers") {
            request.extend_from_slice(name.as_str().as_bytes());
            request.extend_from_slice(b": ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        request.extend_from_slice(content);
        self.connection.get_mut().write_all(&request).expect("S3");
        self.answer();
    }

    fn answer(&mut self) {
        let (mut line, mut length) = (String::new(), 0);
        self.connection.read_line(&mut line).expect("S3");
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line != "\r\n" {
            line.clear();
            self.connection.read_line(&mut line).expect("S3");
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.connection.read_exact(&mut body).expect("S3");
    }
}

impl Keeper for S3 {
    fn keep(&mut self, vcons: &[Taken]) {
        for Taken { id, text } in vcons {
            self.put(&Servers::object_key(id), text.as_bytes());
            self.put(&format!("archive/lookup/{id}.txt"), b"2024/03/16");
        }
    }
}
