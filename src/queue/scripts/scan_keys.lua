-- Returns some keys of a type, without those whose names are too long: anybody may have made them, and no configuration
-- or command line can hold such a name.
-- ARGV: the cursor, the pattern, how many keys to look at, the type, the most bytes of a name.
-- Returns the next cursor, then the keys.

local found = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3], 'TYPE', ARGV[4])
local keys = {found[1]}
for _, key in ipairs(found[2]) do
  if #key <= tonumber(ARGV[5]) then keys[#keys + 1] = key end
end
return keys
