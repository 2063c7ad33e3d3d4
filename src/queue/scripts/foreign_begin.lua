-- A link is about to write a vCon by itself: what others write meanwhile is kept for it.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, the key of the worker's claims, the lane, time to live.
-- Returns how many texts are in the list already.

local begin, till = redis.call('LLEN', KEYS[2]), redis.call('TIME')[1] + ARGV[4]
local own = lane_at_work(redis.sha1hex(ARGV[2]), ARGV[3], begin, till)
redis.call('HSET', KEYS[1], ARGV[1], lanes_at_work(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) .. own)
redis.call('EXPIRE', KEYS[1], ARGV[4])
return begin
