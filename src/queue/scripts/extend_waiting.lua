-- Keeps what waits from running out: documents of a list, and the contexts they came with.
-- KEYS: the keeper's lease; an ingress list; or the dead letter list of a storage, and its hash of reasons.
-- ARGV: the first and the last entry to look at, as LRANGE has them; the time to live that documents get, in
--       seconds, once less than half of it is left; the same for contexts; the instance whose lease it is, and its
--       time to live in milliseconds.
-- Returns how many entries there were, how many documents were kept, and how long the list is; nothing where the lease
-- is not ours.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

if redis.pcall('GET', KEYS[1]) ~= ARGV[5] then return {} end
redis.call('PEXPIRE', KEYS[1], ARGV[6])
local list, reasons = KEYS[2], KEYS[3]
if redis.call('TYPE', list).ok ~= 'list' then return {0, 0, 0} end
local entries = redis.call('LRANGE', list, ARGV[1], ARGV[2])
local kept = 0
for _, entry in ipairs(entries) do
  -- What has a reason is dead, and may run out.
  if entry:find(UUID) and not (reasons and redis.pcall('HEXISTS', reasons, entry) == 1) then
    kept = kept + keep_alive('vcon:' .. entry, ARGV[3])
    if not reasons then keep_alive('context:' .. list .. ':' .. entry, ARGV[4]) end
  end
end
return {#entries, kept, redis.call('LLEN', list)}
