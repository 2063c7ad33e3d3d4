-- Finds the vCons that a worker left behind in the hands of links that write them by themselves.
-- KEYS: the hash of vCons that such links work on. ARGV: the key of the worker's claims.
-- Returns a flat list: UUID, how many texts were kept when the first of these links began, and so on.

local left, worker = {}, redis.sha1hex(ARGV[1])
local fields = redis.pcall('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local first
  for name, _, begin in fields[i + 1]:gmatch(LANE) do
    if name == worker then first = math.min(first or begin, begin) end
  end
  if first then
    left[#left + 1] = fields[i]
    left[#left + 1] = first
  end
end
return left
