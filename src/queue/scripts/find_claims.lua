-- Finds the claims of one worker that name a vCon.
-- KEYS: the claims hash.
-- ARGV: uuid, how many bytes of a record to return.
-- Returns two values for each claim: the lane and the record. Records that only mention the vCon may be among them.
-- Returns nothing if the key holds another type.

if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then return {} end
local found, claims = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #claims, 2 do
  if claims[i + 1]:find(ARGV[1], 1, true) then
    found[#found + 1] = claims[i]:sub(1, 20)
    found[#found + 1] = claims[i + 1]:sub(1, tonumber(ARGV[2]))
  end
end
return found
