
-- Records that a link is about to write a vCon directly. From now on, the texts that others write are recorded for it.
-- KEYS: the hash of vCons that links write directly, the list of recorded texts, the vCon's key.
-- ARGV: uuid, the key of the worker's claims, the lane, time to live.

local count, last = last_kept(KEYS[2])
-- The link reads the last recorded text, unless another such link has overwritten that. Then the base is the oldest known
-- text, so that a merge takes nothing for removed.
local base = last and last:sub(2) == text_under(KEYS[3]) and count - 1 or 0
local till = redis.call('TIME')[1] + ARGV[4]
local own = lane_at_work(redis.sha1hex(ARGV[2]), ARGV[3], base, count, till)
redis.call('HSET', KEYS[1], ARGV[1], lanes_at_work(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) .. own)
redis.call('EXPIRE', KEYS[1], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
