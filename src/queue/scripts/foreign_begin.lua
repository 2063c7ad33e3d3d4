-- A link is about to write a vCon by itself: what others write meanwhile is kept for it.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, time to live, the lane.
-- Returns how many texts are in the list already.

redis.call('HSET', KEYS[1], ARGV[1], lanes_at_work(KEYS[1], ARGV[1], ARGV[3]) .. lane_at_work(ARGV[3], ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('LLEN', KEYS[2])
