//! Bodies of the type `multipart/form-data`: a few texts and one file.
//!
//! The bytes of the file are not copied: they are sent from where they are, between the texts before and after
//! them. The client library has a form of its own, which it does not call stable and which needs two more crates.

use std::fmt::Write as _;
use std::io::{Cursor, Read};

use uuid::Uuid;

/// A form with one file, of which the bytes are the caller's.
#[derive(Debug)]
pub struct Form {
    boundary: String,
    head: String,
}

impl Form {
    /// Begins a form.
    pub fn begin() -> Self {
        Self {
            // Nobody who writes what is in the form can know it.
            boundary: format!("conserver-{}", Uuid::new_v4().simple()),
            head: String::new(),
        }
    }

    /// Adds a field.
    pub fn text(&mut self, name: &str, value: &str) {
        self.part(name);
        let _ = write!(self.head, "\r\n\r\n{value}\r\n");
    }

    /// The value of `Content-Type` for it.
    pub fn content_type(&self) -> String {
        format!("multipart/form-data; boundary={}", self.boundary)
    }

    /// The form with this file as its last field, to be sent, and its length.
    pub fn with_file<'a>(
        mut self,
        name: &str,
        file_name: &str,
        media_type: &str,
        bytes: &'a [u8],
    ) -> (impl Read + 'a, u64) {
        self.part(name);
        let file_name = quoted(file_name);
        let _ = write!(
            self.head,
            "; filename=\"{file_name}\"\r\nContent-Type: {media_type}\r\n\r\n"
        );
        let tail = format!("\r\n--{}--\r\n", self.boundary);
        let length = self.head.len() + bytes.len() + tail.len();
        let body = Cursor::new(self.head).chain(bytes).chain(Cursor::new(tail));
        (body, length as u64)
    }

    /// Begins a part, in the middle of its first line. Writing to a string does not fail.
    fn part(&mut self, name: &str) {
        let (boundary, name) = (&self.boundary, quoted(name));
        let _ = write!(
            self.head,
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\""
        );
    }
}

/// A name as it stands between quotes in the head of a part, as browsers write it.
fn quoted(name: &str) -> String {
    let name = name.replace('"', "%22");
    name.replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_its_fields_and_the_file_in_order() {
        let mut form = Form::begin();
        form.text("model", "größe");
        let (boundary, head) = (form.boundary.clone(), form.content_type());
        assert_eq!(head, format!("multipart/form-data; boundary={boundary}"));
        let file = [0, 13, 10, 255];
        let (mut body, length) = form.with_file("file", "a\"\r\nb.wav", "audio/wav", &file);
        let mut sent = Vec::new();
        body.read_to_end(&mut sent).unwrap();
        assert_eq!(sent.len() as u64, length);
        let mut expected = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ngröße\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a%22%0D%0Ab.wav\"\r\n\
             Content-Type: audio/wav\r\n\r\n"
        )
        .into_bytes();
        expected.extend(file);
        expected.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
        assert_eq!(sent, expected);
    }

    #[test]
    fn no_two_forms_have_one_boundary() {
        assert_ne!(Form::begin().boundary, Form::begin().boundary);
    }
}
