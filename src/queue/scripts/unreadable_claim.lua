-- Puts a record that cannot be worked on where it is in nobody's way and not lost.
-- KEYS: the claims hash.
-- ARGV: lane, the claim's token.
-- Answers 1 when done, 0 when the claim is not ours any more.

local record = redis.call('HGET', KEYS[1], ARGV[1])
if not is_held(record, ARGV[2]) then return 0 end
redis.call('RPUSH', 'conserver:unreadable', record)
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
