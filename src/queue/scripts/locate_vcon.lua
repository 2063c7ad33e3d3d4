-- Says where a vCon is at this instant, and puts it on a list if it is nowhere.
-- KEYS: the lists to search.
-- ARGV: uuid, how many entries at both ends of each list to search, the list to put it on or '', the least time to live of
--       a waiting document in seconds, then claims hashes besides those of the workers of the known instances.
-- Returns 'gone' (its document), 'list', 'claim', 'nowhere' or 'requeued'.

local uuid, key = ARGV[1], 'vcon:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 'gone' end

for _, list in ipairs(KEYS) do
  for _, rank in ipairs({1, -1}) do
    if type(redis.pcall('LPOS', list, uuid, 'RANK', rank, 'MAXLEN', ARGV[2])) == 'number' then return 'list' end
  end
end

local function claimed(hash)
  for _, record in ipairs(redis.pcall('HVALS', hash)) do
    if record:find(uuid, 1, true) then return true end
  end
  return false
end

for _, instance in ipairs(redis.pcall('SMEMBERS', 'conserver:instances')) do
  for _, worker in ipairs(redis.pcall('SMEMBERS', 'conserver:workers:' .. instance)) do
    if claimed('conserver:claims:' .. instance .. ':' .. worker) then return 'claim' end
  end
end
for i = 5, #ARGV do
  if claimed(ARGV[i]) then return 'claim' end
end

if ARGV[3] == '' then return 'nowhere' end
redis.call('RPUSH', ARGV[3], uuid)
local left = redis.call('TTL', key)
if left >= 0 and left < tonumber(ARGV[4]) then redis.pcall('EXPIRE', key, ARGV[4]) end
return 'requeued'
