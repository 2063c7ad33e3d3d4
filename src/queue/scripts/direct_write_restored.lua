
-- The texts that the links of a worker may have overwritten were restored, but the worker may be alive. Its links count as
-- writers for as long as they may still write. What they may overwrite next is the text that was written now.
-- KEYS: the hash of vCons that links write directly.
-- ARGV: uuid, the key of the worker's claims, the index of that text among the recorded ones.

local worker = redis.sha1hex(ARGV[2])
local lanes = lanes_of(KEYS[1], ARGV[1]):gsub(LANE, function(name, lane, base, start, till)
  return name == worker and lane_at_work(name, lane, base, math.max(start, ARGV[3]), till) or nil
end)
set_lanes(KEYS[1], ARGV[1], lanes)
return 1
