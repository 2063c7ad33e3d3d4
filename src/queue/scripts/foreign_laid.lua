-- A worker may have ended, and what its links may have written over was laid back. They count as at work for as long as
-- they may yet write, but what was kept until now is not laid back a second time.
-- KEYS: the hash of vCons that such links work on.
-- ARGV: uuid, the key of the worker's claims, how many of the texts that are kept the document has.

local worker = redis.sha1hex(ARGV[2])
local lanes = lanes_of(KEYS[1], ARGV[1]):gsub(LANE, function(name, lane, begin, till)
  return name == worker and lane_at_work(name, lane, ARGV[3], till) or nil
end)
-- A full Redis refuses the first write of a script, if it may take memory. This one takes none and changes nothing.
redis.call('HDEL', KEYS[1], '')
if lanes ~= '' then redis.call('HSET', KEYS[1], ARGV[1], lanes) end
return 1
