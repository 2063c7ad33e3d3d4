"""The job with RQ: `rq worker-pool vcons --worker-class rq.SimpleWorker` runs it."""

import job
import redis
from rq import Queue, Retry

# Without a retry, the job of a worker that dies is given up. Nobody reads results.
OPTIONS = {"result_ttl": 0, "retry": Retry(max=3)}


def enqueue(uuid):
    queue.enqueue(job.run, uuid, **OPTIONS)


def enqueue_all(uuids):
    for start in range(0, len(uuids), 1000):
        some = uuids[start : start + 1000]
        queue.enqueue_many([Queue.prepare_data(job.run, (uuid,), **OPTIONS) for uuid in some])


if __name__ == "__main__":
    queue = Queue("vcons", connection=redis.Redis.from_url(job.REDIS_URL))
    job.main(enqueue, enqueue_all)
