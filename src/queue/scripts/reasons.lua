-- Returns why entries are dead letters, for somebody to look at. Anybody may have written it: what is too long is cut.
-- KEYS: the hash of reasons. ARGV: the most bytes of a reason, then the entries.
-- Returns nothing if it is no hash.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {} end
local reasons, most = {}, tonumber(ARGV[1])
for i = 2, #ARGV do
  local reason = redis.call('HGET', KEYS[1], ARGV[i])
  reasons[i - 1] = reason and reason:sub(1, most)
end
return reasons
