-- Looks at the ingress lists and sets the number of tokens in the wake list: one for each entry that waits, at most
-- one for each lane. Over a connection with tracking switched on, the reading arms it.
-- KEYS: the lease on the instance's name, then the ingress lists.
-- ARGV: the record of our lease, how many lanes there are, the instance's wake list. That is none of the keys, as some
--       servers track all keys of a script that reads, and would tell of every token.
-- Answers how many entries wait, and 1 if tokens were left from the look before.

local waiting = 0
for i = 2, #KEYS do
  local length = redis.pcall('LLEN', KEYS[i])
  if type(length) == 'number' then waiting = waiting + length end
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {waiting, 0} end
-- Nothing that grows comes first, so that lanes are woken on a server that is full; and one that is no master any
-- more refuses it.
local left = redis.call('DEL', ARGV[3])
local tokens = {}
for i = 1, math.min(waiting, tonumber(ARGV[2])) do tokens[i] = '' end
if #tokens > 0 then redis.call('RPUSH', ARGV[3], unpack(tokens)) end
return {waiting, left}
