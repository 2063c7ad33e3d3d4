-- A link is about to write a vCon by itself: what others write meanwhile is kept for it.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, the key of the worker's claims, the lane, time to live.
-- Returns how many texts are in the list already.

local others = lanes_at_work(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], others .. lane_at_work(ARGV[2], ARGV[3], ARGV[4]))
redis.call('EXPIRE', KEYS[1], ARGV[4])
return redis.call('LLEN', KEYS[2])
