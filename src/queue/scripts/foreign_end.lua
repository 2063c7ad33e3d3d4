-- A link has written a vCon by itself.
-- KEYS: the hash of vCons that such links work on, the list of what was written meanwhile.
-- ARGV: uuid, how many texts were in the list when the link began, the lane.
-- Returns the texts that others have written since then. They stay until `foreign_forget`, as this answer may be lost.

local texts = redis.call('LRANGE', KEYS[2], ARGV[2], -1)
local others = lanes_at_work(KEYS[1], ARGV[1], ARGV[3])
if others ~= '' then
  redis.call('HSET', KEYS[1], ARGV[1], others)
else
  redis.call('HDEL', KEYS[1], ARGV[1])
  if #texts == 0 then redis.call('DEL', KEYS[2]) end
end
return texts
