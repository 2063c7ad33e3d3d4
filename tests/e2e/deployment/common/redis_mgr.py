"""The deployment's one client of Redis."""

from redis import Redis

import settings

client = Redis.from_url(settings.REDIS_URL, decode_responses=True)
