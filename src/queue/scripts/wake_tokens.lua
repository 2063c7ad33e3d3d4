-- Sets the number of tokens in the wake list: one for each entry that waits, at most one for each lane. Looks at a few
-- ingress lists first; over a connection with tracking switched on, the reading arms it.
-- KEYS: the lease on the instance's name, then the ingress lists to look at.
-- ARGV: the record of our lease, how many lanes there are, the instance's wake list, how many entries wait in all other
--       ingress lists. The wake list is none of the keys, as some servers track all keys of a script that reads, and
--       would tell of every token.
-- Returns how many tokens were left from the look before, then the length of each list; 0 for what is none.

local answer, waiting = {0}, tonumber(ARGV[4])
for i = 2, #KEYS do
  local length = redis.pcall('LLEN', KEYS[i])
  answer[i] = type(length) == 'number' and length or 0
  waiting = waiting + answer[i]
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return answer end
-- Nothing that grows comes first, so that lanes are woken on a server that is full; and one that is no master any
-- more refuses it.
local left = redis.call('DEL', ARGV[3])
local tokens = {}
for i = 1, math.min(waiting, tonumber(ARGV[2])) do tokens[i] = '' end
if #tokens > 0 then redis.call('RPUSH', ARGV[3], unpack(tokens)) end
answer[1] = left
return answer
