-- Keeps what waits in a list from running out: documents, and the contexts they came with.
-- KEYS: the ingress list.
-- ARGV: the first and the last entry to look at, as LRANGE has them; the time to live that documents get, in
--       seconds, once less than half of it is left; the same for contexts.
-- Answers how many entries there were, and how many documents were kept.

local UUID = '^' .. ('%x'):rep(8) .. '%-' .. (('%x'):rep(4) .. '%-'):rep(3) .. ('%x'):rep(12) .. '$'

if redis.call('TYPE', KEYS[1]).ok ~= 'list' then return {0, 0} end
local entries = redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])
local kept = 0
for _, entry in ipairs(entries) do
  if entry:find(UUID) then
    kept = kept + keep_alive('vcon:' .. entry, ARGV[3])
    keep_alive('context:' .. KEYS[1] .. ':' .. entry, ARGV[4])
  end
end
return {#entries, kept}
