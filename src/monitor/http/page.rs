//! `/`: a page that shows what the daemon does, live. It is one answer, and asks for nothing but
//! `/status`: its style and its script stand in it, and its policy allows these two by their hashes
//! and nothing else.

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::answer::{Answer, Status};

/// What stands between `<style>` and `</style>`.
macro_rules! style {
    () => {
        include_str!("page/page.css")
    };
}

/// What stands between `<script>` and `</script>`, in the order in which data flows.
macro_rules! script {
    () => {
        concat!(
            "\"use strict\";\n",
            include_str!("page/poll.js"),
            include_str!("page/history.js"),
            include_str!("page/show.js"),
            include_str!("page/tables.js"),
            include_str!("page/chart.js"),
            include_str!("page/format.js"),
            "start();\n",
        )
    };
}

const PAGE: &str = concat!(
    "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>conserver</title>\n",
    "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
    "<meta name=\"color-scheme\" content=\"light dark\">\n",
    "<link rel=\"icon\" href=\"data:image/svg+xml,",
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E",
    "%3Cpath d='M2 12 6 6l3 4 5-7' fill='none' stroke='%230a5fc0' stroke-width='2'/%3E%3C/svg%3E\">\n",
    "<style>",
    style!(),
    "</style>\n",
    include_str!("page/page.html"),
    "<script>",
    script!(),
    "</script>\n",
);

static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
        hash(style!()),
        hash(script!()),
    )
});

/// The page.
pub(super) fn answer() -> Answer {
    Answer::with_policy(Status::Ok, "text/html; charset=utf-8", &POLICY, PAGE)
}
