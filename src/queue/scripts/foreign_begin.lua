-- A link is about to write a vCon by itself: what others write meanwhile is kept for it.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, time to live.
-- Returns how many texts are in the list already.

redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('LLEN', KEYS[2])
