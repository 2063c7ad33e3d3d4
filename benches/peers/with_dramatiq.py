"""The job with dramatiq: `dramatiq with_dramatiq` runs it."""

import dramatiq
import job
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=job.REDIS_URL))


@dramatiq.actor
def run(uuid):
    job.run(uuid)


def enqueue_all(uuids):
    for uuid in uuids:
        run.send(uuid)


if __name__ == "__main__":
    job.main(run.send, enqueue_all)
