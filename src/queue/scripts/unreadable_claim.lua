-- Moves the record of a claim that cannot be worked on to a list of such records, so that it is not lost.
-- KEYS: the claims hash.
-- ARGV: lane, the claim's token.
-- Returns 1 if done, 0 if the lane no longer holds the claim.

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not is_held(record, ARGV[2]) then return 0 end
redis.call('RPUSH', 'conserver:unreadable', record)
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
