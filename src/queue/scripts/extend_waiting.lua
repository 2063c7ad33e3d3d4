-- Keeps what waits from expiring: the documents of the entries of a list, and the contexts of the entries.
-- KEYS: the housekeeping lease; an ingress list, or the dead letter list of a storage and its hash of reasons.
-- ARGV: the indexes of the first and the last entry to look at, as for LRANGE; the time to live that documents get, in
--       seconds, once less than half of it is left; the same for contexts; the instance that must hold the lease, and the
--       lease's time to live in milliseconds.
-- Returns the number of entries looked at, the number of documents extended, and the length of the list; nothing if the
-- instance does not hold the lease.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

if redis.pcall('GET', KEYS[1]) ~= ARGV[5] then return {} end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local list, reasons = KEYS[2], KEYS[3]
if redis.call('TYPE', list).ok ~= 'list' then return {0, 0, 0} end
local entries = redis.call('LRANGE', list, ARGV[1], ARGV[2])
local kept = 0
for _, entry in ipairs(entries) do
  -- An entry with a reason is a dead letter, whose document may expire.
  if entry:find(UUID) and not (reasons and redis.pcall('HEXISTS', reasons, entry) == 1) then
    kept = kept + keep_alive('vcon:' .. entry, ARGV[3])
    if not reasons then keep_alive('context:' .. list .. ':' .. entry, ARGV[4]) end
  end
end
return {#entries, kept, redis.call('LLEN', list)}
