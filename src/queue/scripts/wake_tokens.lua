-- Sets the number of tokens in the wake list: one for each entry that waits, at most one for each lane. Reads a few ingress
-- lists first; on a connection with tracking on, the reading arms it.
-- KEYS: the lease on the instance's name, then the ingress lists to read.
-- ARGV: 1 the record of our lease, 2 the number of lanes, 3 the instance's wake list, 4 how many entries wait in all other
--       ingress lists. The wake list is not among the keys: some servers track all keys of a script that reads, and would
--       announce every token.
-- Returns how many tokens were left from the look before, then the length of each list, 0 if its key holds another type.

local answer, waiting = {0}, tonumber(ARGV[4])
for i = 2, #KEYS do
  local length = redis.pcall('LLEN', KEYS[i])
  answer[i] = type(length) == 'number' and length or 0
  waiting = waiting + answer[i]
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return answer end
-- Nothing that takes memory comes first, so that lanes are woken on a full server. A server that is no longer the master
-- refuses this write.
local left = redis.call('DEL', ARGV[3])
local tokens = {}
for i = 1, math.min(waiting, tonumber(ARGV[2])) do tokens[i] = '' end
if #tokens > 0 then redis.call('RPUSH', ARGV[3], unpack(tokens)) end
answer[1] = left
return answer
