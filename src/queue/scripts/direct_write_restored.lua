
-- What the links of a worker may have written over was laid back, and the worker may be alive. They count as at work
-- for as long as they may yet write: what may be written over next is the text that was written now.
-- KEYS: the hash of vCons that such links work on.
-- ARGV: uuid, the key of the worker's claims, which of the texts that are kept is that one.

local worker = redis.sha1hex(ARGV[2])
local lanes = lanes_of(KEYS[1], ARGV[1]):gsub(LANE, function(name, lane, base, start, till)
  return name == worker and lane_at_work(name, lane, base, math.max(start, ARGV[3]), till) or nil
end)
set_lanes(KEYS[1], ARGV[1], lanes)
return 1
