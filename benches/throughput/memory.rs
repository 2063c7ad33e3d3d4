//! The most memory that a worker takes for one document.

use std::fs;

use serde_json::json;

use super::Effort;
use super::case::{self, Case};
use super::document::{Document, USUAL, ids};
use super::ours::{self, Done, Way};
use super::report::{Report, print, progress, table};
use super::servers::Servers;

const MEGABYTE: f64 = 1e6;

/// The table of peaks.
pub fn measure(servers: &Servers, effort: &Effort, report: &mut Report) {
    let mut table = table(&[
        "storages",
        "document, MB",
        "peak, MB",
        "file pages, MB",
        "(peak - 10 MB) / document",
        "without file pages",
    ]);
    report.begin("memory");
    for case in [case::BARE, case::NONE, case::FILE, case::POSTGRES, case::S3] {
        for megabytes in [1, 10, 50, 200] {
            if effort.quick && megabytes > 10 {
                continue;
            }
            progress(&format!("memory: {}, {megabytes} MB", case.name));
            let size = megabytes * 1_000_000;
            let (peak, file_pages) = peak(servers, &case, size);
            let (peak, file_pages) = (peak / MEGABYTE, file_pages / MEGABYTE);
            let factor = (peak - 10.0) / megabytes as f64;
            table.add_row([
                case.name.to_owned(),
                megabytes.to_string(),
                format!("{peak:.1}"),
                format!("{file_pages:.1}"),
                format!("{factor:.2}"),
                format!("{:.2}", (peak - file_pages - 10.0) / megabytes as f64),
            ]);
            report.add(
                "memory",
                json!({"storages": case.name, "document": size, "peak": peak * MEGABYTE,
                    "file_pages": file_pages * MEGABYTE}),
            );
        }
    }
    print(
        "The most memory for one document",
        &table,
        "the worker's VmHWM, of a fresh worker; file pages: those in it when the document is done, most of which are the \
         program's and shared by all workers",
    );
}

/// The most memory that a worker has had, and how much of what it has are pages of files.
pub fn peak(servers: &Servers, case: &Case, size: usize) -> (f64, f64) {
    servers.empty();
    let ids = ids(1);
    servers.load(&Document::of_size(size), &ids);
    let daemon = ours::start(servers, case, Way::of(1, 1));
    servers.push("default", &ids);
    Done::of(&servers.redis).wait_for(1);
    let worker = daemon.workers()[&1];
    let status = fs::read_to_string(format!("/proc/{worker}/status")).expect("the worker runs");
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.expect("a line").trim().trim_end_matches(" kB");
        kilobytes.parse::<f64>().expect("a number") * 1024.0
    };
    let found = (bytes("VmHWM:"), bytes("RssFile:") + bytes("RssShmem:"));
    ours::stop(servers, daemon);
    found
}
