//! Round trips to Redis: a claim with its document, and letting go of it.

use conserver::queue::{Claim, Document as Found, DocumentFormat, Finish, Queue, Replacement};
use conserver::vcon::VconId;
use divan::Bencher;

use super::document::{Document, USUAL};
use super::harness::{Redis, list, queue};

/// A private Redis with vCons on a list.
struct Bench {
    redis: Redis,
    document: Document,
    queue: Queue,
}

impl Bench {
    fn new() -> Self {
        let redis = Redis::plain();
        let queue = queue(&redis, "bench", 1);
        let document = Document::of_size(USUAL);
        Self {
            redis,
            document,
            queue,
        }
    }

    fn hand_in(&self) {
        let id = uuid::Uuid::new_v4().to_string();
        let text = self.document.plain(&id);
        self.redis
            .ask::<()>(&["SET", &format!("vcon:{id}"), &text, "EX", "60"]);
        self.redis.ask::<()>(&["RPUSH", "in", &id]);
    }

    fn claim(&mut self) -> (Claim, VconId, String) {
        let (claim, found) = self
            .queue
            .claim(&[list("in")])
            .expect("Redis")
            .work
            .expect("work");
        let Found::Found(_, text) = found else {
            panic!("{found:?}");
        };
        let id = claim.id().expect("an id");
        (claim, id, String::from_utf8(text).expect("UTF-8"))
    }

    fn finish(&mut self, claim: &Claim, id: &VconId, document: Option<Replacement<'_>>) {
        let egress = [list("out")];
        let finish = Finish {
            id,
            document,
            expire: None,
            egress: &egress,
            routes: &[],
            context: None,
            failed_storages: &[],
        };
        self.queue.finish(claim, &finish).expect("Redis");
    }
}

/// What a lane does between two vCons that no link changes.
#[divan::bench(max_time = 2)]
fn claim_and_finish(bencher: Bencher<'_, '_>) {
    let bench = std::cell::RefCell::new(Bench::new());
    bencher
        .with_inputs(|| bench.borrow().hand_in())
        .bench_local_values(|()| {
            let mut bench = bench.borrow_mut();
            let (claim, id, _) = bench.claim();
            bench.finish(&claim, &id, None);
        });
}

/// The same where a link has changed it.
#[divan::bench(max_time = 2)]
fn claim_and_finish_changed(bencher: Bencher<'_, '_>) {
    let bench = std::cell::RefCell::new(Bench::new());
    let text = bench.borrow().document.left("x", true);
    bencher
        .with_inputs(|| bench.borrow().hand_in())
        .bench_local_values(|()| {
            let mut bench = bench.borrow_mut();
            let (claim, id, base) = bench.claim();
            let document = Replacement {
                kind: DocumentFormat::Text,
                base: &base,
                text: Some(&text),
            };
            bench.finish(&claim, &id, Some(document));
        });
}

/// Beside these: what the shortest command takes.
#[divan::bench(max_time = 1)]
fn ping(bencher: Bencher<'_, '_>) {
    let redis = Redis::plain();
    let mut connection = redis.connection();
    bencher.bench_local(|| {
        redis::cmd("PING")
            .query::<()>(&mut connection)
            .expect("Redis")
    });
}
