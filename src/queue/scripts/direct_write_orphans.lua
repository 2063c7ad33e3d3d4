
-- Finds the vCons whose direct writes a worker left behind.
-- KEYS: the hash of vCons that links write directly. ARGV: the key of the worker's claims.
-- Returns a flat list: UUID, the index of the recorded text that the first of these links began with, the index of the
-- first text that they may have overwritten, and so on.

local left, worker = {}, redis.sha1hex(ARGV[1])
local fields = redis.pcall('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local first, from
  for name, _, base, start in fields[i + 1]:gmatch(LANE) do
    if name == worker then first, from = math.min(first or base, base), math.min(from or start, start) end
  end
  if first then
    for _, value in ipairs({fields[i], first, from}) do left[#left + 1] = value end
  end
end
return left
