-- Finds the vCons that a worker left behind in the hands of links that write them by themselves.
-- KEYS: the hash of vCons that such links work on. ARGV: the key of the worker's claims.
-- Returns their UUIDs.

local left, worker = {}, redis.sha1hex(ARGV[1])
local fields = redis.pcall('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  if fields[i + 1]:find(worker, 1, true) then left[#left + 1] = fields[i] end
end
return left
