-- Returns the members of a set, without those that are too long: anybody may have added them.
-- KEYS: the set.
-- ARGV: the most bytes of a member; 'drop' to remove those that are longer.
-- Returns nothing if the key holds another type.

local members = {}
if redis.call('TYPE', KEYS[1]).ok ~= 'set' then return members end
for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if #member <= tonumber(ARGV[1]) then
    members[#members + 1] = member
  elseif ARGV[2] == 'drop' then
    redis.call('SREM', KEYS[1], member)
  end
end
return members
