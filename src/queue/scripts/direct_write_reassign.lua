
-- The texts that the links of a worker may have overwritten could not be restored now. Leaves that to another worker.
-- KEYS: the hash of vCons that links write directly.
-- ARGV: uuid, the key of the worker's claims, that of the other worker's, '1' if the first worker may be alive and
--       overwrite the texts again.

local from, to, lanes = redis.sha1hex(ARGV[2]), redis.sha1hex(ARGV[3]), ''
local function add(...)
  local lane = lane_at_work(...)
  if not lanes:find(lane, 1, true) then lanes = lanes .. lane end
end
for name, lane, base, start, till in lanes_of(KEYS[1], ARGV[1]):gmatch(LANE) do
  if name == from then add(to, lane, base, start, till) end
  if name ~= from or ARGV[4] == '1' then add(name, lane, base, start, till) end
end
set_lanes(KEYS[1], ARGV[1], lanes)
return 1
