-- Returns the reasons of dead letters, each up to a length: anybody may have written them.
-- KEYS: the hash of reasons.
-- ARGV: how many bytes of a reason to return; the entries.
-- Returns nothing if the key holds another type.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {} end
local reasons, most = {}, tonumber(ARGV[1])
for i = 2, #ARGV do
  local reason = redis.call('HGET', KEYS[1], ARGV[i])
  reasons[i - 1] = reason and reason:sub(1, most)
end
return reasons
