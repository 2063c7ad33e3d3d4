-- Keeps what waits from running out: documents of a list, and the contexts they came with.
-- KEYS: an ingress list; or the dead letter list of a storage, and its hash of reasons.
-- ARGV: the first and the last entry to look at, as LRANGE has them; the time to live that documents get, in
--       seconds, once less than half of it is left; the same for contexts.
-- Returns how many entries there were, and how many documents were kept.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

if redis.call('TYPE', KEYS[1]).ok ~= 'list' then return {0, 0} end
local entries = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local kept = 0
for _, entry in ipairs(entries) do
  -- What has a reason is dead, and may run out.
  if entry:find(UUID) and not (KEYS[2] and redis.pcall('HEXISTS', KEYS[2], entry) == 1) then
    kept = kept + keep_alive('vcon:' .. entry, ARGV[3])
    if not KEYS[2] then keep_alive('context:' .. KEYS[1] .. ':' .. entry, ARGV[4]) end
  end
end
return {#entries, kept}
