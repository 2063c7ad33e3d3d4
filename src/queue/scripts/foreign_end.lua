-- A link has written a vCon by itself.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, how many texts were in the list when the link began.
-- Returns the texts that others have written since then.

local texts = redis.call('LRANGE', KEYS[2], ARGV[2], -1)
if redis.call('HINCRBY', KEYS[1], ARGV[1], -1) < 1 then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2])
end
return texts
